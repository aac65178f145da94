import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.parallel.layout import Layout
from training.rehearsal.grid import Grid, GroupKind, shown


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.data())
def test_groups_of_every_kind_cover_every_rank_once(
    pipeline: int, data: int, sequence: int, tensor: int, draw: st.DataObject
) -> None:
    shards = data * sequence
    expert = draw.draw(st.sampled_from([n for n in range(1, shards + 1) if shards % n == 0]))
    grid = Grid(pipeline=pipeline, data=data, sequence=sequence, tensor=tensor, expert=expert)
    for kind in set(GroupKind) - {GroupKind.tied}:
        assert sorted(grid.groups(kind).ravel()) == list(range(grid.world_size)), kind
    for row in grid.groups(GroupKind.expert_shards):
        assert len(row) == shards // expert
        assert {grid.pipeline_stage_of(int(rank)) for rank in row} == {grid.pipeline_stage_of(int(row[0]))}
    for row in grid.groups(GroupKind.sequence):
        assert len({grid.replica_of(int(rank)) for rank in row}) == 1


@given(st.integers(1, 6), st.integers(1, 6))
def test_without_planned_axes_ranks_are_numbered_as_in_the_layout(pipeline: int, data: int) -> None:
    grid = Grid(pipeline=pipeline, data=data)
    layout = Layout(world_size=pipeline * data, num_pipeline_stages=pipeline)
    for rank in range(grid.world_size):
        assert grid.pipeline_stage_of(rank) == layout.pipeline_stage_of(rank)
        assert grid.replica_of(rank) == grid.shard_of(rank) == layout.replica_of(rank)
    assert grid.groups(GroupKind.pipeline).tolist() == [layout.pipeline_group(r) for r in range(data)]
    assert grid.groups(GroupKind.shards).tolist() == [layout.shard_group(s) for s in range(pipeline)]
    assert [row.tolist() for row in grid.groups(GroupKind.tied)] == [
        [row[0], row[-1]] for row in grid.groups(GroupKind.pipeline).tolist()
    ]


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), (range(8), "ranks 0-7"), (range(0, 64, 8), "ranks 0-56/8"), ([0, 1, 5], "ranks 0, 1, 5")],
)
def test_ranks_are_shown_shortly(ranks: list[int], text: str) -> None:
    assert shown(np.array(ranks, np.int32)) == text
