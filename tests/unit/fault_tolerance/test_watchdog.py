"""The watchdog of one real process: what it ends, what it leaves behind, and what it lets be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.engine.collectives import CollectiveLog
from training.errors import ConfigError, ExitCode
from training.fault_tolerance.injected import STALL_VARIABLE, make_heartbeat

REPOSITORY = Path(__file__).parents[3]
PROGRAM = """
import sys, threading, time, pathlib
import torch.distributed as dist
from training.config.load import compose
from training.engine.collectives import CollectiveLog
from training.fault_tolerance.heartbeat import Heartbeat, Section
from training.fault_tolerance.watchdog import Watchdog

directory, manner = pathlib.Path(sys.argv[1]), sys.argv[2]
limits = [f"fault_tolerance.hang.{name}_seconds=1.5" for name in ("start_up", "first_step", "step")]
config = compose(["experiment=smoke", *limits])
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
heartbeat = Heartbeat(CollectiveLog())
watchdog = Watchdog(heartbeat, store, rank=0, world_size=1, device="cpu")
watchdog.start()
watchdog.use(config, directory)

def sleeps_for_ever():
    heartbeat.section(Section.step, 7)
    threading.Event().wait()

def goes_on():
    (directory / "ready").touch()
    for step in range(60):
        heartbeat.section(Section.step, step)
        time.sleep(0.1)

{"hangs": sleeps_for_ever, "goes on": goes_on}[manner]()
watchdog.close()
"""


def start(directory: Path, manner: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory), manner],
        cwd=REPOSITORY,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_hangs_is_ended_with_its_stacks_and_its_reason(tmp_path: Path) -> None:
    process = start(tmp_path, "hangs")
    _, said = process.communicate(timeout=60)
    assert process.returncode == ExitCode.HANG, said
    ended = json.loads((tmp_path / "exit.json").read_text())
    assert (ended["exit_code"], ended["rank"], ended["step"], ended["host"]) == (11, 0, 7, os.uname().nodename)
    assert f"to blame: rank 0 on {os.uname().nodename} (process {process.pid})" in ended["error"]
    assert "section step at step 7" in ended["error"]
    assert (tmp_path / "logs/rank-00000.error").read_text().startswith("Hang: ")
    assert "in sleeps_for_ever" in (tmp_path / "logs/rank-00000.stacks").read_text()


def test_a_process_that_goes_on_is_let_be_even_if_it_was_suspended(tmp_path: Path) -> None:
    process = start(tmp_path, "goes on")
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)  # twice the limit
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert not (tmp_path / "exit.json").exists()


def test_a_process_writes_its_stacks_into_its_log_on_request(tmp_path: Path) -> None:
    process = start(tmp_path, "goes on")
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR2)
    log = tmp_path / "logs/rank-00000.log"
    while "in goes_on" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)


@pytest.mark.parametrize("text", ["step:1", "nowhere:1:2:3", "step:x:1:1", "step:1:1:soon"])
def test_a_stall_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=STALL_VARIABLE):
        make_heartbeat({STALL_VARIABLE: text}, CollectiveLog(), rank=0)
