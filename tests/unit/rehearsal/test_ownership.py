import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rehearsal.layouts import any_layout, rehearsal
from training.config.optimizer_schema import OptimizerConfig
from training.models.sizes import num_parameters
from training.rehearsal.buckets import full_buckets, partition_numel, partitioned_pieces, sharded_bucket
from training.rehearsal.parameters import Parameter, optimizer_groups


@settings(max_examples=40)
@given(any_layout())
def test_every_element_has_one_owner_and_no_rank_has_much_more_than_its_share(layout: dict) -> None:
    sound = rehearsal(**layout)
    ownership, grid = sound.ownership, sound.plan.grid
    owned = ownership.state.rows(ownership.state.is_owner)
    marks = [np.zeros(numel, np.int64) for numel in ownership.numels]
    for parameter, start, numel in zip(owned.parameter, owned.start, owned.numel, strict=True):
        marks[parameter][start : start + numel] += 1
    assert all((mark == 1).all() for mark in marks)
    assert ownership.numels.sum() == num_parameters(sound.plan.config.model)
    assert sound.file_bytes.sum() == 12 * ownership.numels.sum() + 4 * sound.biases.numels.sum()
    if layout["zero_stage"] > 0:
        held = ownership.state.numel_of_ranks(grid.world_size)
        largest = max(sum(p.whole_numel for x in chunk.layers for p in x.all_parameters) for chunk in sound.plan.chunks)
        rounding = len(ownership.names) * len(sound.plan.parts)
        assert held.max() <= largest * sound.plan.layout.chunks_per_rank / grid.num_shards + rounding


_PARAMETERS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=12).map(
    lambda shapes: [Parameter(f"p{number}", shape) for number, shape in enumerate(shapes)]
)


@given(_PARAMETERS, st.integers(1, 200), st.integers(1, 7))
def test_buckets_hold_every_gradient_once_and_none_is_fuller_than_it_may_be(
    parameters: list[Parameter], bucket_elements: int, num_shards: int
) -> None:
    buckets = full_buckets(parameters, bucket_elements=bucket_elements)
    assert [p for bucket in buckets for p in bucket] == parameters
    assert all(len(bucket) == 1 or sum(p.numel for p in bucket) <= bucket_elements for bucket in buckets)
    groups = optimizer_groups(OptimizerConfig(lr=1.0), parameters)
    total = sum(p.numel for p in parameters)
    pieces = [
        piece
        for bucket in buckets
        for piece in partitioned_pieces(bucket, groups, bucket_elements=bucket_elements, num_shards=num_shards)
    ]
    assert sum(piece.numel for piece in pieces) == total
    padded = sum(sharded_bucket(bucket, num_shards=num_shards).numel for bucket in buckets)
    assert total <= padded < total + num_shards * len(parameters)


@pytest.mark.parametrize(("numel", "num_shards", "part"), [(936, 4, 234), (937, 4, 236), (1, 8, 2), (416, 4, 104)])
def test_parts_of_a_flat_group_have_an_even_number_of_elements(numel: int, num_shards: int, part: int) -> None:
    assert partition_numel(numel, num_shards) == part
