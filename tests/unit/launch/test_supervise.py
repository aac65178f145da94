"""A child process to its end, with real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.supervise import Outcome, exit_code, first_error, supervise
from training.errors import ExitCode

REPOSITORY = Path(__file__).parents[3]


def run(program: str, directory: Path) -> Outcome:
    command = [sys.executable, "-c", program, str(directory)]
    return supervise(command, run_directory=directory, environment=os.environ)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def write_error(directory: Path, rank: int, text: str, *, seconds: int) -> None:
    file = directory / "logs" / f"rank-{rank:05d}.error"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    os.utime(file, (seconds, seconds))


def test_success_is_believed_only_with_a_ledger_that_is_done(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = "import sys, pathlib; pathlib.Path(sys.argv[1], 'stages.json').write_text('{\"state\": \"done\"}')"
    assert run("", tmp_path).exit_code is ExitCode.FAILED
    assert "ended with exit code 1" in capfd.readouterr().err
    assert run(done, tmp_path) == Outcome(exit_code=ExitCode.DONE, interrupted=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("command_code", "reported", "expected"),
    [
        (1, '{"exit_code": 3, "error": "gate"}', ExitCode.GATE_BLOCKED),
        (4, None, ExitCode.PEER_LOST),
        (-9, None, ExitCode.FAILED),
        (247, None, ExitCode.FAILED),
        (1, '{"exit_code": 99}', ExitCode.FAILED),
        (5, '{"exit_co', ExitCode.NON_FINITE),
        (0, '{"exit_code": 8, "error": "disk full"}', ExitCode.STORAGE),
    ],
)
def test_the_first_failing_ranks_code_counts_then_the_launchers(
    tmp_path: Path, command_code: int, reported: str | None, expected: ExitCode
) -> None:
    if reported is not None:
        (tmp_path / "exit.json").write_text(reported)
    assert exit_code(tmp_path, command_code) is expected


def test_the_first_failing_rank_is_the_oldest_file_that_is_not_about_a_lost_peer(tmp_path: Path) -> None:
    assert first_error(tmp_path) is None
    write_error(tmp_path, 0, "PeerLost: rank 1 is gone\n", seconds=100)
    assert first_error(tmp_path) == tmp_path / "logs" / "rank-00000.error"
    write_error(tmp_path, 2, "Traceback\nValueError: second\n", seconds=300)
    write_error(tmp_path, 1, "Traceback\nValueError: first\n", seconds=200)
    assert first_error(tmp_path) == tmp_path / "logs" / "rank-00001.error"


def test_the_first_failing_ranks_words_are_printed_last(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = """
import json, pathlib, sys
logs = pathlib.Path(sys.argv[1], "logs"); logs.mkdir()
(logs / "rank-00001.error").write_text("Traceback\\nValueError: the cause\\n")
(logs / "rank-00000.error").write_text("PeerLost: connection closed\\n")
pathlib.Path(sys.argv[1], "exit.json").write_text(json.dumps({"exit_code": 5, "error": "NaN"}))
print("noise", file=sys.stderr); sys.exit(1)
"""
    assert run(program, tmp_path).exit_code is ExitCode.NON_FINITE
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "noise"
    assert lines[-1] == "ValueError: the cause"
    assert "first failing rank: rank-00001" in lines


HUNG = """
import json, os, pathlib, signal, subprocess, sys, time
directory = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
frozen = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(directory / "pid").write_text(str(frozen.pid))
os.kill(frozen.pid, signal.SIGSTOP)
{what}
time.sleep(60)
"""
ENDS = {
    "a hang": "(directory / 'exit.json').write_text(json.dumps({'exit_code': 11, 'error': 'Hang'}))",
    "a lost peer": "(directory / 'logs').mkdir(); (directory / 'logs/rank-00001.error').write_text('PeerLost: gone')",
    "a killed rank": "subprocess.Popen([sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)'])",
}


@pytest.mark.parametrize("what", ENDS)
def test_a_job_that_cannot_go_on_is_ended_soon_with_what_is_frozen(what: str, tmp_path: Path) -> None:
    """DeepSpeed's launcher would send SIGTERM, which a stopped process does not hear, and wait half a minute."""
    began = time.monotonic()
    outcome = run(HUNG.replace("{what}", ENDS[what]), tmp_path)
    assert time.monotonic() - began < 10, "two seconds, and some for a busy machine"
    assert outcome.exit_code is {"a hang": ExitCode.HANG, "a lost peer": ExitCode.PEER_LOST}.get(what, ExitCode.FAILED)
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_alive(pid))


def test_what_an_earlier_attempt_reported_is_forgotten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_error(tmp_path, 0, "ValueError: yesterday\n", seconds=100)
    (tmp_path / "exit.json").write_text('{"exit_code": 5}')
    assert run("raise SystemExit(6)", tmp_path).exit_code is ExitCode.CORRUPT_CHECKPOINT
    errors = capfd.readouterr().err
    assert "yesterday" not in errors
    assert not (tmp_path / "exit.json").exists()
    assert json.loads((tmp_path / "exit.earlier.json").read_text()) == {"exit_code": 5}, "the next start records it"
    assert "no rank could say why" in errors


def test_nothing_the_command_started_outlives_it(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, pathlib, os\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path(sys.argv[1], 'pid').write_text(str(child.pid))\n"
        "os._exit(1)"
    )
    run(program, tmp_path)
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_alive(pid))


SUPERVISOR = """
import os, sys, pathlib
from launch.supervise import supervise
directory = pathlib.Path(sys.argv[1])
program = '''
import os, pathlib, signal, sys, time
signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
def stop(number, frame):
    pathlib.Path(sys.argv[1], "got").write_text(str(number))
    if sys.argv[2] == "obeys": sys.exit(4)
for number in signals: signal.signal(number, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
pathlib.Path(sys.argv[1], "pid.new").write_text(str(os.getpid()))
os.rename(sys.argv[1] + "/pid.new", sys.argv[1] + "/pid")
time.sleep(60)
time.sleep(60)
'''
command = [sys.executable, "-c", program, str(directory), sys.argv[2]]
outcome = supervise(command, run_directory=directory, environment=os.environ | {"RANK": "0"})
(directory / "outcome").write_text(f"{outcome.exit_code.name} {outcome.interrupted}")
"""


def start_supervisor(directory: Path, manner: str) -> tuple[subprocess.Popen[bytes], int]:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(directory), manner], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    )
    wait_for((directory / "pid").exists)
    return supervisor, int((directory / "pid").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_the_rank_and_its_own_exit_code_counts(tmp_path: Path, number: signal.Signals) -> None:
    supervisor, child = start_supervisor(tmp_path, "obeys")
    supervisor.send_signal(number)
    assert supervisor.wait(timeout=20) == 0
    assert (tmp_path / "got").read_text() == str(int(number))
    assert (tmp_path / "outcome").read_text() == "PEER_LOST True"
    assert not is_alive(child)


def test_a_second_ctrl_c_kills_a_command_that_does_not_listen(tmp_path: Path) -> None:
    supervisor, child = start_supervisor(tmp_path, "ignores")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        supervisor.send_signal(number)
        wait_for((tmp_path / "got").exists)
        time.sleep(0.3)  # a few looks of the supervisor
        assert is_alive(child), f"killed by {number}"
    assert (tmp_path / "got").read_text() == str(int(signal.SIGTERM)), "told more than once"
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(timeout=20) == 0
    assert (tmp_path / "outcome").read_text() == "FAILED True"
    assert not is_alive(child)


def test_the_command_dies_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    supervisor, child = start_supervisor(tmp_path, "obeys")
    supervisor.kill()
    supervisor.wait(timeout=20)
    wait_for(lambda: not is_alive(child))


def test_a_blocked_ledger_is_no_success_whatever_the_launcher_says(tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text(json.dumps({"state": "blocked"}))
    assert exit_code(tmp_path, 0) is ExitCode.FAILED
