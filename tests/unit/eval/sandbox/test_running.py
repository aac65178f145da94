"""One program in a sandbox: what comes back, and how it ended."""

import pytest

from eval.sandbox.limits import Ending, Limits
from eval.sandbox.running import run_program
from tests.unit.eval.sandbox.available import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def test_a_program_reads_its_input_and_writes_its_output() -> None:
    ran = run_program("import sys\nprint(input().upper())\nprint('ß', file=sys.stderr)\nsys.exit(3)", stdin="hello\n")
    assert (ran.ending, ran.exit_status, ran.stdout, ran.stderr) == (Ending.exited, 3, "HELLO\n", "ß\n")
    assert not ran.timed_out


def test_it_cannot_write_to_its_input() -> None:
    ran = run_program("import os\nos.write(0, b'x')", stdin="hello")
    assert "Bad file descriptor" in ran.stderr


def test_a_sandbox_shows_a_python_without_packages_and_nothing_else() -> None:
    ran = run_program(
        "import os, sys\nprint(os.environ.get('PATH'), os.getcwd(), os.listdir('.'), sys.argv)\nimport numpy"
    )
    assert ran.stdout == "None /tmp [] ['/code/program.py']\n"
    assert "No module named 'numpy'" in ran.stderr


def test_without_tmp_nothing_can_be_written() -> None:
    ran = run_program("import os\nprint(os.getcwd())\nopen('/x', 'w')", limits=Limits(tmp_bytes=0))
    assert ran.stdout == "/\n"
    assert "Read-only file system" in ran.stderr


@pytest.mark.parametrize(
    ("source", "ending", "exit_status"),
    [
        ("while True: pass", Ending.cpu_time, 128 + 24),
        ("bytearray(10**11)", Ending.memory, 1),
        ("while True: print('x' * 1000)", Ending.output, 128 + 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", Ending.exited, 128 + 15),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", Ending.killed, 128 + 9),
    ],
)
def test_how_a_program_ended(source: str, ending: Ending, exit_status: int) -> None:
    ran = run_program(source, limits=Limits(cpu_seconds=1, wall_seconds=60.0, output_bytes=10_000))
    assert (ran.ending, ran.exit_status) == (ending, exit_status)
    assert ran.timed_out is (ending is Ending.cpu_time)
    assert len(ran.stdout) == (10_000 if ending is Ending.output else 0)


def test_a_program_that_waits_is_killed_at_its_deadline() -> None:
    ran = run_program("print('here', flush=True)\nimport time\ntime.sleep(10**6)", limits=Limits(wall_seconds=4.0))
    assert (ran.ending, ran.stdout, ran.timed_out) == (Ending.wall_time, "here\n", True)


def test_output_exactly_at_the_limit_is_fine() -> None:
    ran = run_program("print('x' * 999)", limits=Limits(output_bytes=1000))
    assert (ran.ending, len(ran.stdout)) == (Ending.exited, 1000)


def test_processes_within_the_limit_are_allowed() -> None:
    source = """
import os
readers = []
for number in range(COUNT):
    if not os.fork():
        __import__("time").sleep(100)
print("all")
"""
    assert run_program(source.replace("COUNT", "3"), limits=Limits(processes=4)).stdout == "all\n"
    assert "BlockingIOError" in run_program(source.replace("COUNT", "4"), limits=Limits(processes=4)).stderr
