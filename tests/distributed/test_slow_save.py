import json
import sys
from pathlib import Path

from tests.distributed.slow_save_worker import COLLECTIVE_TIMEOUT_SECONDS, SAVE_SECONDS
from tests.integration.running import run_to_end
from training.checkpoint.catalog import verify


def test_a_save_may_take_longer_than_any_collective_of_training_and_nobody_waits(tmp_path: Path) -> None:
    assert SAVE_SECONDS > 2 * COLLECTIVE_TIMEOUT_SECONDS
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    finished = run_to_end([*torchrun, "-m", "tests.distributed.slow_save_worker", str(tmp_path)], folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["seconds"] >= SAVE_SECONDS
    assert found["steps"] > 10, "training stood still"
    assert found["stall"] < SAVE_SECONDS / 2
    verify(Path(found["checkpoint"]))
