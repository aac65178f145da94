"""Memory of real processes that share the tokens of a sequence, beside that of processes which do not."""

import sys

import pytest

from tests.distributed.sequence_memory_worker import SEQUENCE_SIZES, WORLD_SIZE, StepBytes, ratios, read
from tests.integration.running import run_to_end

SEQUENCE_LENGTH = 4096


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[StepBytes]]:
    folder = tmp_path_factory.mktemp("sequence_memory")
    output = folder / "seen.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD_SIZE}"]
    worker = ["-m", "tests.distributed.sequence_memory_worker", str(output), str(SEQUENCE_LENGTH)]
    finished = run_to_end([*torchrun, *worker], folder=folder)
    assert finished.exit_code == 0, finished.explain()
    return read(output)


def test_two_ranks_that_share_a_sequence_take_half_the_memory_each(seen: dict[int, list[StepBytes]]) -> None:
    of_activations, of_all = ratios(seen)
    assert 0.48 < of_activations < 0.56
    assert 0.48 < of_all < 0.58


def test_ranks_are_equal_and_weights_are_not_shared(seen: dict[int, list[StepBytes]]) -> None:
    for ranks in seen.values():
        assert ranks == [ranks[0]] * WORLD_SIZE
    held = [seen[sequence][0].held for sequence in SEQUENCE_SIZES]
    assert held == [held[0]] * len(SEQUENCE_SIZES)
