"""The issue's limit: whatever happens to disk, terminal and wandb, training does not wait more than a second."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.drills.bad_servers import broken_server, nobody, tarpit
from tests.unit.reporting.log_worker import NUM_STEPS, STEP_SECONDS, WANDB_CLOSE_SECONDS
from training.reporting.log_writer import CLOSE_SECONDS

LONGEST_WAIT_SECONDS = 1.0
"""From the issue."""
ALL_STEPS = list(range(1, NUM_STEPS + 1))
EVENTS = list(range(10, NUM_STEPS + 1, 10))

ON_OWN_DISK = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && shift 2 && exec "$@"'


def worker(scenario: str, folder: Path, found: Path | None = None) -> list[str]:
    words = [scenario, str(folder), str(found or folder / "found.json")]
    return [sys.executable, "-m", "tests.unit.reporting.log_worker", *words]


def run(command: Sequence[str], *, folder: Path, **environment: str) -> tuple[dict[str, Any], str]:
    """What the worker found, and what stood on its standard error."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads((folder / "found.json").read_text()), done.stderr.decode()


def on_a_disk_of(size: str, scenario: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Run a scenario on a disk of its own, in mounts of its own."""
    disk = folder / "disk"
    disk.mkdir()
    in_own_mounts = ["unshare", "-rm", "sh", "-c", ON_OWN_DISK, "sh", size, str(disk)]
    return run([*in_own_mounts, *worker(scenario, disk, folder / "found.json")], folder=folder)


needs_mounts = pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine lets nobody make mounts",
)
needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None
    or subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode != 0,
    reason="there is no strace, or it may not trace",
)


@needs_mounts
def test_a_full_disk_holds_up_nothing_and_loses_nothing_once_there_is_room(tmp_path: Path) -> None:
    found, said = on_a_disk_of("64k", "full_then_free", tmp_path)
    assert found["longest"] < LONGEST_WAIT_SECONDS
    assert found["size_while_full"] < 4096 * 2, "the disk was not full"
    assert found["steps"] == ALL_STEPS
    assert found["events"] == EVENTS
    assert len(found["incidents"]) == 1
    assert "No space left on device" in found["incidents"][0]
    assert said.count("records wait in memory") == 1


@needs_mounts
def test_a_disk_that_stays_full_ends_the_run_by_name_before_memory_does(tmp_path: Path) -> None:
    found, _ = on_a_disk_of("64k", "full_for_good", tmp_path)
    assert "No space left on device" in found["overflow"]
    assert "records wait in memory, no more are kept" in found["overflow"]
    assert found["taken"] > 20
    assert "records are lost" in found["at_close"]
    assert found["seconds"] < CLOSE_SECONDS + LONGEST_WAIT_SECONDS


@needs_strace
def test_a_slow_disk_holds_up_nothing_that_is_a_step(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    slow = ["strace", "-f", "-o", "/dev/null", "-P", str(log), "-e", "trace=fsync,write"]
    slow += ["-e", "inject=fsync:delay_enter=1500000"]
    found, _ = run([*slow, *worker("slow", tmp_path)], folder=tmp_path)
    assert found["longest"] < LONGEST_WAIT_SECONDS
    assert found["steps"] == ALL_STEPS


def test_a_reader_that_stopped_reading_holds_up_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        worker("whole_reporter", tmp_path), stdout=subprocess.PIPE, env={**os.environ, "LOG_WORKER_STEPS": "2000"}
    ) as process:
        assert process.stdout is not None
        assert process.wait(timeout=100) == 0  # 2000 lines are more than a pipe holds
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["steps"] == list(range(1, 2001))
    assert found["longest"] < LONGEST_WAIT_SECONDS


@pytest.mark.parametrize("stdout", [">&-", "> /dev/full"])
def test_a_closed_or_full_standard_output_ends_nothing(stdout: str, tmp_path: Path) -> None:
    command = ["sh", "-c", f'exec "$@" {stdout}', "sh", *worker("whole_reporter", tmp_path)]
    found, said = run(command, folder=tmp_path)
    assert found["steps"] == ALL_STEPS
    assert found["longest"] < LONGEST_WAIT_SECONDS
    assert "Traceback" not in said


@pytest.mark.parametrize("server", [nobody, tarpit, broken_server])
def test_wandb_without_a_server_costs_training_nothing(server: Any, tmp_path: Path) -> None:
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    for folder in (quiet, disturbed):
        folder.mkdir()
    alone, _ = run(worker("whole_reporter", quiet), folder=quiet)
    with server() as url:
        begun = time.monotonic()
        found, _ = run(
            worker("whole_reporter", disturbed),
            folder=disturbed,
            LOG_WORKER_WANDB="online",
            WANDB_MODE="online",
            WANDB_BASE_URL=url,
            WANDB_API_KEY="a" * 40,
        )
    assert found["longest"] < LONGEST_WAIT_SECONDS
    assert found["steps"] == ALL_STEPS
    assert found["close"] < WANDB_CLOSE_SECONDS + 2
    assert time.monotonic() - begun < WANDB_CLOSE_SECONDS + NUM_STEPS * STEP_SECONDS + 30
    print(
        f"{server.__name__}: longest {found['longest']:.4f} s, alone {alone['longest']:.4f} s; "
        f"{NUM_STEPS} steps {found['steps_took']:.2f} s, alone {alone['steps_took']:.2f} s"
    )
