import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import ConfigError
from training.parallel.layout import Layout


@given(pipeline=st.integers(1, 12), replicas=st.integers(1, 12))
def test_ranks_and_places_are_one_to_one(pipeline: int, replicas: int) -> None:
    layout = Layout(world_size=pipeline * replicas, num_pipeline_stages=pipeline)
    places = [(layout.pipeline_stage_of(rank), layout.replica_of(rank)) for rank in range(layout.world_size)]
    assert sorted(places) == [(stage, replica) for stage in range(pipeline) for replica in range(replicas)]
    assert [layout.rank_of(pipeline_stage=stage, replica=replica) for stage, replica in places] == list(
        range(layout.world_size)
    )


@given(pipeline=st.integers(1, 12), replicas=st.integers(1, 12))
def test_pipelines_partition_the_ranks_first_pipeline_stage_first(pipeline: int, replicas: int) -> None:
    layout = Layout(world_size=pipeline * replicas, num_pipeline_stages=pipeline)
    pipes = [layout.pipeline_group(replica) for replica in range(replicas)]
    assert sorted(rank for pipe in pipes for rank in pipe) == list(range(layout.world_size))
    assert all(layout.pipeline_stage_of(rank) == place for pipe in pipes for place, rank in enumerate(pipe))


def test_replicas_of_a_pipeline_stage_are_neighbours() -> None:
    layout = Layout(world_size=8, num_pipeline_stages=2)
    assert [layout.pipeline_stage_of(rank) for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_pipeline_that_does_not_divide_the_world_is_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(ConfigError, match=r"parallel.pipeline=4 works.*\[1, 2, 4, 8\]"):
        Layout(world_size=8, num_pipeline_stages=5)
