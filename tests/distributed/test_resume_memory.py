"""A run that fits when it trains fits when it is resumed: highest resident memory of both, in fresh processes."""

import json
import sys
from pathlib import Path

import pytest

from tests.distributed.resume_memory_worker import WORLD_SIZE, config_of
from tests.integration.running import run_to_end
from training.models.sizes import num_parameters

LIMIT = 1.1
"""Times the peak of steady training."""
SMALL_BYTES = 16 * 2**20
"""Manifest, headers and what the allocator keeps; a thirtieth of the state."""


def measured(what: str, folder: Path) -> list[dict[str, int]]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD_SIZE}"]
    worker = ["-m", "tests.distributed.resume_memory_worker", what, str(folder)]
    finished = run_to_end([*torchrun, *worker], folder=folder)
    assert finished.exit_code == 0, finished.explain()
    return json.loads((folder / f"{what}.json").read_text())


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    folder = tmp_path_factory.mktemp("resume_memory")
    return [train | resume for train, resume in zip(measured("train", folder), measured("resume", folder), strict=True)]


def test_building_and_loading_take_little_more_memory_than_training(ranks: list[dict[str, int]]) -> None:
    for rank in ranks:
        assert max(rank["built"], rank["loaded"]) <= LIMIT * rank["steady"], rank


def test_loading_adds_what_the_rank_holds_and_no_more(ranks: list[dict[str, int]]) -> None:
    state_bytes = 12 * num_parameters(config_of().model)
    for rank in ranks:
        assert rank["read"] == pytest.approx(state_bytes / WORLD_SIZE, rel=0.01)
        # Once, in the buffer that saving uses too.
        assert rank["loaded"] - rank["before"] <= LIMIT * rank["read"] + SMALL_BYTES, rank
