"""One child process to its end: signals go in, nothing outlives it, the first failing rank has the last word."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from training.config.run_directory import is_done
from training.errors import ExitCode
from training.plain_files import read_json

_PR_SET_PDEATHSIG = 1
"""prctl(2), Linux."""
_RANK_ERRORS = "rank-*.error"
"""Text files that failing ranks leave in RUN_DIR/logs."""
RANK_EXIT = "exit.json"
"""{"exit_code": …, "error": …} of the first failing rank, in the run directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a child process ended."""

    exit_code: ExitCode
    interrupted: bool
    """True if it ended because this process was told to stop."""


def supervise(
    command: Sequence[str], *, run_directory: Path, environment: Mapping[str, str], until: str | None = None
) -> Outcome:
    """Run a command in its own session until it ends and return the run's exit code.

    SIGINT and SIGTERM reach the whole session (a second one kills it); SIGKILL of this process kills the command;
    whatever the command leaves behind is killed. On failure the first failing rank's text is printed last.
    """
    clear_reports(run_directory)
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    process = subprocess.Popen(command, env=dict(environment), start_new_session=True, preexec_fn=die_with_parent)
    with _signals_forwarded(process.pid) as received:
        # Not reaped yet, so that its process group id cannot be anybody else's.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = exit_code(run_directory, process.wait(), until=until)
    if code is not ExitCode.DONE:
        print(failure_report(run_directory, code), file=sys.stderr, flush=True)
    return Outcome(exit_code=code, interrupted=bool(received))


def exit_code(run_directory: Path, command_code: int, *, until: str | None = None) -> ExitCode:
    """Return the run's exit code: the first failing rank's own, else the command's if it is one of ours, else FAILED.

    0 is only believed if the ledger says that the run, or its training stage `until`, is done.
    """
    try:
        return ExitCode(read_json(run_directory / RANK_EXIT)["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a killed rank leaves no file, or half of one
    if command_code == 0:
        return ExitCode.DONE if is_done(run_directory, until=until) else ExitCode.FAILED
    return ExitCode(command_code) if command_code in list(ExitCode) else ExitCode.FAILED


def failure_report(run_directory: Path, code: ExitCode) -> str:
    """Return what went wrong, ending with the text of the rank that failed first."""
    head = f"run {run_directory.name} ended with exit code {int(code)} ({code.name}); logs: {run_directory / 'logs'}"
    first = first_error(run_directory)
    if first is None:
        return f"{head}\nno rank could say why: killed from outside, out of memory, or crashed in native code"
    return f"{head}\nfirst failing rank: {first.stem}\n{first.read_text(encoding='utf-8', errors='replace').rstrip()}"


def first_error(run_directory: Path) -> Path | None:
    """Return the error file of the rank that failed first; one that only lost its peers comes after all others."""
    files = list((run_directory / "logs").glob(_RANK_ERRORS))
    return min(files, key=lambda file: (_is_about_a_lost_peer(file), file.stat().st_mtime_ns, file.name), default=None)


def _is_about_a_lost_peer(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as lines:
        return "PeerLost" in lines.readline()


def clear_reports(run_directory: Path) -> None:
    """Remove what an earlier attempt reported, so that it is not taken for this one's."""
    (run_directory / RANK_EXIT).unlink(missing_ok=True)
    for file in (run_directory / "logs").glob(_RANK_ERRORS):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _signals_forwarded(process_group: int) -> Iterator[list[int]]:
    """Send SIGINT and SIGTERM on to a process group; yields the signals received so far."""
    received: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process_group, number if len(received) == 1 else signal.SIGKILL)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
