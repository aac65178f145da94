"""A wish to stop reaches the ranks of a command, early and late ones, and neither their launcher nor their helpers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch import stop_signals
from launch.stop_signals import StopSignals, ranks_of

REPOSITORY = Path(__file__).parents[3]

NOTE = """
import os, pathlib, signal, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def note(number, frame):
    with (folder / f"{name}.got").open("a") as file: print(number, file=file)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT): signal.signal(number, note)
def listen():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    (folder / f"{name}.new").write_text(str(os.getpid()))
    (folder / f"{name}.new").rename(folder / name)
"""
HELPER = NOTE + "listen()\ntime.sleep(100)"
RANK = (
    NOTE
    + f"""
import subprocess
subprocess.Popen([sys.executable, "-c", {HELPER!r}, str(folder), "helper-of-" + name], start_new_session=True)
while not (folder / ("go-" + name)).exists(): time.sleep(0.01)  # "importing"
listen()
time.sleep(100)
"""
)
LAUNCHER = (
    NOTE
    + f"""
import subprocess
for rank in "01":
    while not (folder / ("start-" + rank)).exists(): time.sleep(0.01)
    command = [sys.executable, "-c", {RANK!r}, str(folder), "rank-" + rank]
    subprocess.Popen(command, env={{**os.environ, "RANK": rank}})
listen()
time.sleep(100)
"""
)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[int]:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path), "launcher"]
    launcher = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=stop_signals.block)
    yield launcher.pid
    for file in tmp_path.glob("*"):
        if file.suffix == "" and (text := file.read_text()):
            os.kill(int(text), signal.SIGKILL)
    launcher.wait(timeout=10)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.02)


def got(folder: Path, name: str) -> list[int]:
    file = folder / f"{name}.got"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_every_rank_is_told_once_whenever_it_starts_and_nobody_else(session: int, tmp_path: Path) -> None:
    signals = StopSignals()
    signals.pass_on(session)  # nothing to pass on
    with signals.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == [signal.SIGUSR1, signal.SIGTERM]
    signals.pass_on(session)
    for rank in "01":
        (tmp_path / f"start-{rank}").touch()
        wait_for(lambda rank=rank: len(ranks_of(session)) == int(rank) + 1)
        for _ in range(3):
            signals.pass_on(session)  # while it does not listen yet
        (tmp_path / f"go-rank-{rank}").touch()
        wait_for((tmp_path / f"rank-{rank}").exists)
        wait_for((tmp_path / f"helper-of-rank-{rank}").exists)
    wait_for((tmp_path / "launcher").exists)
    assert ranks_of(session) == sorted(int((tmp_path / f"rank-{rank}").read_text()) for rank in "01")
    for _ in range(3):
        signals.pass_on(session)
    wait_for(lambda: all(got(tmp_path, f"rank-{rank}") for rank in "01"))
    assert [got(tmp_path, f"rank-{rank}") for rank in "01"] == [[signal.SIGUSR1], [signal.SIGUSR1]]
    assert not [name for name in ("launcher", "helper-of-rank-0", "helper-of-rank-1") if got(tmp_path, name)]
