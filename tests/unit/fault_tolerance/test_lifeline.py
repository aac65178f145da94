"""A chain of real processes named like a launcher's; whatever of it is killed, the rank at its end dies soon."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from training.fault_tolerance import lifeline

REPOSITORY = Path(__file__).parents[3]
SOON_SECONDS = 10

LINK = """
import json, os, subprocess, sys, time
names = json.loads(os.environ["CHAIN"])
if len(names) > 1:
    os.environ["CHAIN"] = json.dumps(names[1:])
    subprocess.run([sys.executable, "-c", os.environ["LINK"], *names[1]])
else:
    from training.fault_tolerance.lifeline import tie_to_launcher
    from training.fault_tolerance.signals import StopRequest
    request = StopRequest.listen()
    request.has_started()
    tie_to_launcher(request)
    open(os.environ["TIED"], "w").write("tied")
    time.sleep(300)
"""


class Chain:
    """Processes from the first down to the rank; each has its words on its command line and no other's."""

    def __init__(self, names: list[list[str]], folder: Path) -> None:
        tied = folder / "tied"
        environment = {"CHAIN": json.dumps(names), "LINK": LINK, "TIED": str(tied)}
        command = [sys.executable, "-c", LINK, *names[0]]
        self.first = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | environment, start_new_session=True)
        deadline = time.monotonic() + 60
        while not tied.exists():
            assert time.monotonic() < deadline, "the rank did not start"
            time.sleep(0.05)
        self.processes = [psutil.Process(self.first.pid), *psutil.Process(self.first.pid).children(recursive=True)]
        assert len(self.processes) == len(names)

    def kill(self, index: int) -> None:
        self.processes[index].kill()
        if index == 0:
            self.first.wait(timeout=10)

    def rank_dies(self, within_seconds: float = SOON_SECONDS) -> bool:
        deadline = time.monotonic() + within_seconds
        while time.monotonic() < deadline:
            try:
                if self.processes[-1].status() == psutil.STATUS_ZOMBIE:
                    return True
            except psutil.NoSuchProcess:
                return True
            time.sleep(0.05)
        return False

    def end(self) -> None:
        for process in self.processes:
            if process.is_running():
                process.kill()
        self.first.wait(timeout=10)


@pytest.fixture
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chain]:
    chain = Chain(request.param, tmp_path)
    yield chain
    chain.end()


SUBMIT, RUNNER, LAUNCH = ["-m", "launch.submit"], ["/env/bin/deepspeed"], ["-m", "deepspeed.launcher.launch"]
RANK = ["-m", "training.train", "run.name=torchrun"]


@pytest.mark.parametrize("chain", [[LAUNCH, RANK]], indirect=True)
def test_a_rank_dies_with_its_parent(chain: Chain) -> None:
    chain.kill(0)
    assert chain.rank_dies()


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("chain", [[SUBMIT, RUNNER, LAUNCH, RANK]], indirect=True)
def test_a_rank_dies_with_any_process_of_its_launcher(chain: Chain, index: int) -> None:
    chain.kill(index)
    assert chain.rank_dies()


@pytest.mark.parametrize("chain", [[SUBMIT, RUNNER, LAUNCH, RANK]], indirect=True)
def test_a_rank_that_was_told_to_stop_gets_time_to_save_when_the_same_signal_ended_its_launcher(chain: Chain) -> None:
    chain.processes[1].send_signal(signal.SIGTERM)
    chain.processes[-1].send_signal(signal.SIGTERM)
    assert not chain.rank_dies(within_seconds=4)


@pytest.mark.parametrize(
    "chain", [[["sh", "-c", "cd /x; torchrun --nproc_per_node 2"], ["/env/bin/torchrun"], RANK]], indirect=True
)
def test_a_rank_outlives_the_shell_that_its_launcher_was_started_from(chain: Chain) -> None:
    chain.kill(0)
    assert not chain.rank_dies(within_seconds=3)


@pytest.mark.parametrize("chain", [[SUBMIT, LAUNCH, RANK]], indirect=True)
def test_a_rank_of_a_healthy_launcher_lives(chain: Chain) -> None:
    assert not chain.rank_dies(within_seconds=3)
    chain.processes[-1].kill()  # and ends as any other process
    assert chain.rank_dies()


ORPHAN = """
import os, sys, time
while os.getppid() == int(sys.argv[1]):  # "importing" while the launcher is killed
    time.sleep(0.01)
from training.fault_tolerance.lifeline import tie_to_launcher
tie_to_launcher()
time.sleep(300)
"""


def test_a_rank_whose_launcher_died_before_it_could_look_dies_too(tmp_path: Path) -> None:
    """It has been reparented, so no ancestor tells; the variable that launch.submit sets does."""
    spawn = (
        "import os, subprocess, sys; from training.process_identity import start_time; me = os.getpid();"
        "os.environ['AUTARKY_LAUNCHER'] = f'{me}:{start_time(me)}';"
        "rank = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(me)]); print(rank.pid, flush=True);"
        "os.kill(me, 9)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", spawn, ORPHAN], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    rank = psutil.Process(int(launcher.stdout.readline()))
    launcher.wait(timeout=10)
    try:
        rank.wait(timeout=SOON_SECONDS)  # a reparented process: psutil polls
    finally:
        if rank.is_running():
            rank.kill()
            pytest.fail("the rank outlived its launcher")


def ssh_server(terminal: str, shell_text: str) -> subprocess.Popen[bytes]:
    """A process with the title of an ssh server's session, which runs a shell as ssh's command line is run."""
    script = f"exec -a 'sshd: root@{terminal}' bash -c '$0 -c \"$1\"; :' bash '{shell_text}'"
    return subprocess.Popen(["bash", "-c", script], start_new_session=True)


@pytest.mark.parametrize(
    ("terminal", "shell_text", "belongs"),
    [
        ("notty", "sleep 300; : deepspeed.launcher.launch", True),
        ("notty", "sleep 300; : orted", True),
        ("notty", "sleep 300; : something else", False),
        ("pts/0", "sleep 300; : deepspeed.launcher.launch", False),
    ],
)
def test_only_an_ssh_session_that_was_opened_for_the_launcher_belongs_to_it(
    terminal: str, shell_text: str, belongs: bool
) -> None:
    server = ssh_server(terminal, shell_text)
    try:
        deadline = time.monotonic() + 20
        while not (sleepers := [p for p in psutil.Process(server.pid).children(recursive=True) if p.name() == "sleep"]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        found = lifeline._ssh_session(sleepers[0].ppid())
        assert [ancestor.pid for ancestor in found] == ([server.pid] if belongs else [])
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(timeout=10)
