"""Wall clocks that jump by a day or differ between ranks change nothing but the dates in the log."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.drills.clocks import CAN_SHIFT, DAY, Clock, build_shim
from tests.integration.conftest import Reference
from tests.integration.reading import contents, last_checkpoint, ledger, numbers_by_step, records
from tests.integration.running import Job, kill, only_run, run_directories
from training.errors import ExitCode

pytestmark = pytest.mark.skipif(not CAN_SHIFT, reason="no C compiler (cc): a piece of C shifts the clocks")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


def in_time_of(clock: Clock) -> list[str]:
    """The words before a command whose clock it is to be."""
    return ["env", *(f"{name}={value}" for name, value in clock.environment.items())]


def test_the_shim_shifts_the_wall_clock_only(shim: Path, tmp_path: Path) -> None:
    program = "import time, datetime; print(time.time(), time.monotonic(), datetime.datetime.now().timestamp())"
    command = [*in_time_of(Clock(tmp_path / "clock", shim, -DAY)), sys.executable, "-c", program]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    wall, monotonic, date = map(float, words)
    assert abs(wall - (time.time() - DAY)) < 60
    assert abs(date - (time.time() - DAY)) < 60
    assert abs(monotonic - time.monotonic()) < 60


def ranks(clocks: list[Clock], overrides: list[str]) -> list[list[str]]:
    """The command of every rank, as a launcher would start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    train = [sys.executable, "-m", "training.train", *overrides]
    world = [f"WORLD_SIZE={len(clocks)}", f"LOCAL_WORLD_SIZE={len(clocks)}", "MASTER_ADDR=127.0.0.1"]
    return [
        [*in_time_of(clock), *world, f"MASTER_PORT={port}", f"RANK={rank}", f"LOCAL_RANK={rank}", *train]
        for rank, clock in enumerate(clocks)
    ]


def test_clocks_that_differ_and_jump_give_one_run_directory_and_the_same_run(
    reference: Reference, shim: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    overrides = [*reference.overrides, f"run.root={root}", "resume=auto", "checkpoint.every_steps=1"]

    # Rank 1 lives a day ahead. Rank 0's clock jumps a day ahead, then two days back, as if set by hand.
    clocks = [Clock(tmp_path / f"clock-{rank}", shim, rank * DAY) for rank in range(2)]
    first, second = ranks(clocks, overrides)
    with Job(first, folder=tmp_path) as job, Job(second, folder=tmp_path) as other:
        job.wait_until(lambda: any(len(records(run, "step")) >= 2 for run in run_directories(root)))
        run = only_run(root)  # named by the date, which each rank would have told differently
        clocks[0].shift(DAY)
        job.wait_until(lambda: len(records(run, "step")) >= 4)
        clocks[0].shift(-DAY)
        job.wait_until(lambda: len(records(run, "step")) >= 6)
        kill(other.process_named("training.train"))
        assert job.wait(limit_seconds=60).exit_code == ExitCode.PEER_LOST

    # What was written last has older dates now: the newest is still the one of the highest step.
    newest = last_checkpoint(run).name
    clocks[1].shift(-3 * DAY)
    first, second = ranks(clocks, overrides)
    with Job(first, folder=tmp_path) as job, Job(second, folder=tmp_path) as other:
        finished = [job.wait(), other.wait()]
    assert [one.exit_code for one in finished] == [0, 0], finished[0].explain()
    assert list(run_directories(root)) == [run]
    assert ledger(run)["state"] == "done"
    assert [record["message"] for record in records(run, "incident")] == [f"continues from {newest}"]
    dates = [record["time"] for record in records(run, "step")]
    assert dates != sorted(dates), "the clock did not jump"
    assert numbers_by_step(records(run, "step")) == numbers_by_step(records(reference.directory, "step"))
    assert contents(last_checkpoint(run))["files"] == contents(last_checkpoint(reference.directory))["files"]
