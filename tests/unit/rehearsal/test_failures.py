from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from tests.distributed.configs import STAGE
from tests.unit.rehearsal.layouts import any_layout, rehearsal, run_config
from training.errors import ConfigError
from training.models.sizes import num_parameters
from training.rehearsal.failures import lose_nodes, random_nodes, smaller_start, start_with_spares
from training.rehearsal.rehearsal import Rehearsal


def test_a_node_takes_its_ranks_and_the_pipelines_that_they_are_in() -> None:
    sound = rehearsal(pipeline=2, data=4, zero_stage=3)  # 8 ranks on 4 nodes
    loss = lose_nodes(sound, [1, 3])
    assert loss.ranks == (2, 3, 6, 7)
    assert loss.dead_of_pipeline_stage == {0: 2, 1: 2}
    assert loss.replicas == (2, 3)


@pytest.mark.parametrize(("zero_stage", "survives"), [(0, True), (1, False), (2, False), (3, False)])
def test_only_without_zero_does_the_state_survive_in_memory(zero_stage: int, survives: bool) -> None:
    sound = rehearsal(data=4, zero_stage=zero_stage)
    loss = lose_nodes(sound, [0])
    assert loss.survives_in_memory is survives
    assert loss.state_bytes == 12 * num_parameters(sound.plan.config.model)
    if not survives:
        assert loss.lost_bytes == pytest.approx(loss.state_bytes / 2, rel=0.01)
    assert lose_nodes(sound, range(2)).lost_bytes == loss.state_bytes


@settings(max_examples=30)
@given(any_layout())
def test_with_spares_every_rank_reads_its_own_file_and_all_read_the_whole_state(layout: dict[str, Any]) -> None:
    sound = rehearsal(**layout)
    start = start_with_spares(sound)
    if layout["zero_stage"] == 0:
        assert set(start.read_bytes.tolist()) == {12 * num_parameters(sound.plan.config.model)}
    elif not layout["tied"]:
        own = sound.file_bytes - 4 * sound.biases.state.numel_of_ranks(len(sound.file_bytes))
        assert start.read_bytes.tolist() == own.tolist()
        assert (start.read_files == (own > 0)).all()


def test_without_spares_replicas_go_and_the_rest_read_more() -> None:
    sound = rehearsal(pipeline=2, data=6, zero_stage=3, accumulation=2)  # 24 samples a step on 12 ranks, 6 nodes
    start = smaller_start(sound, num_alive_nodes=5)
    assert start is not None
    assert (start.num_nodes, start.replicas, start.accumulation) == (4, 4, 3)
    assert start.read_bytes.sum() == sound.file_bytes.sum()
    assert start.read_bytes.max() > sound.file_bytes.max()


def test_files_that_are_opened_are_those_that_hold_what_is_read() -> None:
    config = run_config(pipeline=2, data=6, zero_stage=3, accumulation=2)
    old = Rehearsal.of(config, STAGE)
    new = Rehearsal.of(replace(config, cluster=replace(config.cluster, num_nodes=4)), STAGE)
    expected = np.zeros(8, np.int64)
    written = old.ownership.state
    for rank in range(8):
        files = set()
        for row in np.flatnonzero(new.ownership.state.rank == rank):
            wanted = new.ownership.state.rows(np.array([row]))
            low, high = wanted.start[0], wanted.start[0] + wanted.numel[0]
            meets = (written.parameter == wanted.parameter[0]) & (written.start < high)
            meets &= written.start + written.numel > low
            files |= set(written.rank[meets].tolist())
        expected[rank] = len(files)
    start = smaller_start(old, num_alive_nodes=4)
    assert start is not None
    assert start.read_files.tolist() == expected.tolist()


def test_no_number_of_living_nodes_may_fit() -> None:
    sound = rehearsal(pipeline=4, data=2, zero_stage=3, accumulation=4)  # 8 ranks on 4 nodes
    assert smaller_start(sound, num_alive_nodes=1) is None


def test_nodes_that_there_are_not_are_refused() -> None:
    with pytest.raises(ConfigError, match="a number from 0 to 1"):
        lose_nodes(rehearsal(data=4), [2])
    with pytest.raises(ConfigError, match="1 to 2"):
        random_nodes(2, count=3, seed=0)
    first, again, other = (random_nodes(100, count=5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
