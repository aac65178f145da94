"""Run something in a forked process with limits on time and memory, and see how it ended."""

import os
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.errors import AutarkyError

LIMIT_SECONDS = 60.0
"""For a payload that is refused within one on a quiet machine."""
LIMIT_BYTES = 2 * 2**30
"""Of address space beyond what the process had when it was forked."""
_KILLED = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; -1 if it was killed, by us or by a signal."""
    output: str
    seconds: float


def bounded(work: Callable[[], int | None], output: Path) -> Ended:
    """Return how some work ended that prints its errors and returns an exit code, as a command does."""
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_the_child(work, output)
    code: int | None = None
    while code is None:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        elif time.monotonic() - begun > LIMIT_SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            code = _KILLED
        else:
            time.sleep(0.005)
    return Ended(code=max(code, _KILLED), output=output.read_text(errors="replace"), seconds=time.monotonic() - begun)


def module(name: str, *arguments: str) -> Callable[[], int]:
    """Return `python -m NAME ARGUMENTS` as work for `bounded`."""

    def run() -> int:
        sys.argv = [name, *arguments]
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def call(function: Callable[[], object]) -> Callable[[], int]:
    """Return a call of one of our functions as work for `bounded`; errors end it as they end a rank."""

    def run() -> int:
        try:
            function()
        except AutarkyError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        return 0

    return run


def _be_the_child(work: Callable[[], int | None], output: Path) -> None:
    code = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most_bytes = pages * os.sysconf("SC_PAGE_SIZE") + LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = int(work() or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
