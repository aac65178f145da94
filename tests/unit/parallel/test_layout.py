from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import ConfigError
from training.parallel.layout import Layout


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    pipeline, replicas, sequence = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    shards = replicas * sequence
    expert = draw(st.sampled_from([n for n in range(1, shards + 1) if shards % n == 0]))
    return Layout(world_size=pipeline * shards, num_pipeline_stages=pipeline, sequence=sequence, expert=expert)


@given(layout=layouts())
def test_ranks_and_places_are_one_to_one(layout: Layout) -> None:
    ranks = range(layout.world_size)
    places = [(layout.pipeline_stage_of(r), layout.replica_of(r), layout.sequence_part_of(r)) for r in ranks]
    grid = (range(layout.num_pipeline_stages), range(layout.num_replicas), range(layout.sequence))
    assert places == list(product(*grid))
    assert [layout.rank_of(pipeline_stage=layout.pipeline_stage_of(r), shard=layout.shard_of(r)) for r in ranks] == [
        *ranks
    ]
    speakers = [layout.replica_of(rank) for rank in ranks if layout.speaks_for_replica(rank)]
    assert speakers == list(range(layout.num_replicas)), "one of each replica"


@given(layout=layouts())
def test_groups_partition_the_ranks(layout: Layout) -> None:
    groups = {
        "pipelines": [layout.pipeline_group(shard) for shard in range(layout.num_shards)],
        "shards": [layout.shard_group(pipeline_stage) for pipeline_stage in range(layout.num_pipeline_stages)],
        "sequences": layout.sequence_groups(),
        "experts": layout.expert_groups(),
        "same experts": layout.expert_shard_groups(),
    }
    for name, ranks in groups.items():
        assert sorted(rank for group in ranks for rank in group) == list(range(layout.world_size)), name
    assert all(layout.pipeline_stage_of(r) == place for group in groups["pipelines"] for place, r in enumerate(group))
    assert all(len({layout.replica_of(rank) for rank in group}) == 1 for group in groups["sequences"])
    for group in groups["experts"] + groups["same experts"]:
        assert len({layout.pipeline_stage_of(rank) for rank in group}) == 1
    for group in groups["same experts"]:
        assert len({layout.shard_of(rank) % layout.expert for rank in group}) == 1


def test_replicas_of_a_pipeline_stage_are_neighbours() -> None:
    layout = Layout(world_size=8, num_pipeline_stages=2)
    assert [layout.pipeline_stage_of(rank) for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_pipeline_that_does_not_divide_the_world_is_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(ConfigError, match=r"parallel.pipeline=4 works.*\[1, 2, 4, 8\]"):
        Layout(world_size=8, num_pipeline_stages=5)
