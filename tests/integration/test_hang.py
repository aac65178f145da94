"""A rank that hangs or is slow is named; nothing of the job outlives that, and the run goes on to the same bits.

More hangs, at more places: `python -m tests.drills.hang`.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.drills.drill_run import make_reference
from tests.drills.hang import Hang, drill, freeze, stall
from tests.drills.moments import Place
from tests.drills.starts import ForkServer
from tests.integration.reading import records
from tests.integration.running import kill, only_run, run_directories, submit
from tests.integration.test_launchers import SHORT
from training.errors import ExitCode
from training.fault_tolerance.injected import STALL_VARIABLE

CRASH_SEEN_SECONDS = 3.0
HANG_SEEN_SECONDS = 2.0
ORPHANS_GONE_SECONDS = 5.0
LIMIT_SECONDS = 4.0


def incidents(root: Path, what: str) -> list[str]:
    found = [record for run in run_directories(root) for record in records(run, "incident")]
    return [record["message"] for record in found if record["what"] == what]


def num_steps(root: Path) -> int:
    return sum(len(records(run, "step")) for run in run_directories(root))


def test_hangs_are_blamed_right_in_time_and_make_no_difference(tmp_path: Path) -> None:
    hangs: list[Hang] = []
    faults = [freeze(0, Place.training), stall(1, "save"), stall(0, "between")]
    with ForkServer() as server:
        reference = make_reference(server, tmp_path, (8, 8))
        wrong = drill(server, reference, tmp_path, faults, seed=0, tell=hangs.append)
    assert wrong == []
    assert [(hang.victim, hang.blamed) for hang in hangs] == [(0, 0), (1, 1), (0, 0)]
    assert [hang.section for hang in hangs[1:]] == ["save", "between"]


def test_a_frozen_rank_ends_the_job_of_launch_submit_with_code_11(tmp_path: Path, prepared_root: Path) -> None:
    root = tmp_path / "runs"
    overrides = [
        *SHORT,
        "stages.pretrain.tokens=51200",
        f"run.root={root}",
        f"data.prepared_root={prepared_root}",
        f"fault_tolerance.hang.step_seconds={LIMIT_SECONDS}",
    ]
    with submit(overrides, folder=tmp_path) as job:
        job.wait_until(lambda: num_steps(root) >= 3)
        run = only_run(root)
        victim = job.ranks()[1]
        victim.send_signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        job.wait_until((run / "exit.json").exists, limit_seconds=60)
        seen = time.monotonic() - frozen_at
        finished = job.wait(limit_seconds=60)
        assert job.survivors(within_seconds=ORPHANS_GONE_SECONDS) == []
    assert finished.exit_code == ExitCode.HANG, finished.explain()
    assert seen < LIMIT_SECONDS + HANG_SEEN_SECONDS
    ended = json.loads((run / "exit.json").read_text())
    assert ended["rank"] == 1
    assert f"to blame: rank 1 on {os.uname().nodename} (process {victim.pid})" in ended["error"]
    assert "section step at step" in ended["error"]
    assert "(ranks 0-1)" in ended["error"], "its last operation"
    assert ended["error"] in finished.stderr
    stacks = (run / "logs/rank-00000.stacks").read_text()
    assert "training_loop.py" in stacks
    assert b"gloo" in (run / "logs/rank-00000.flight.json").read_bytes()
    table = json.loads((run / "heartbeat.json").read_text())
    assert table["ranks"] == 2


def test_a_slow_rank_is_named_and_goes_on_and_a_crash_is_seen_within_three_seconds(
    tmp_path: Path, prepared_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STALL_VARIABLE, "step:1:*:0.15")
    root = tmp_path / "runs"
    overrides = [
        *SHORT,
        "stages.pretrain.tokens=512000",
        f"run.root={root}",
        f"data.prepared_root={prepared_root}",
        "fault_tolerance.stragglers.window_steps=2",
    ]
    with submit(overrides, folder=tmp_path) as job:
        job.wait_until(lambda: bool(incidents(root, "slow_rank")), limit_seconds=100)
        steps = num_steps(root)
        job.wait_until(lambda: num_steps(root) > steps + 3, limit_seconds=60)
        kill(job.ranks()[0])
        killed_at = time.monotonic()
        finished = job.wait(limit_seconds=60)
        seen = time.monotonic() - killed_at
        assert job.survivors(within_seconds=ORPHANS_GONE_SECONDS) == []
    assert finished.exit_code == ExitCode.PEER_LOST, finished.explain()
    assert seen < CRASH_SEEN_SECONDS
    assert {message.partition(" is busy")[0] for message in incidents(root, "slow_rank")} == {
        f"rank 1 on {os.uname().nodename}"
    }
    assert incidents(root, "hang") == []
