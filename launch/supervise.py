"""One child process to its end: signals go in, nothing outlives it, the first failing rank has the last word."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import stop_signals
from launch.stop_signals import StopSignals
from training.config.run_directory import is_done
from training.errors import ExitCode
from training.exit_report import RANK_ERRORS, RANK_EXIT, put_away
from training.plain_files import read_json
from training.process_identity import stat_fields

_PR_SET_PDEATHSIG = 1
"""prctl(2), Linux."""
_GRACE_SECONDS = 2.0
"""What the other ranks get to end by themselves after one has died, hung, or lost a peer."""
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 1.0
"""Between two looks into RUN_DIR/logs, which is on shared storage and may hold the files of thousands of ranks."""


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

    SIGTERM, SIGUSR1 and SIGINT reach all ranks, however often they come; a second SIGINT kills the command. SIGKILL of
    this process kills it, too; whatever it leaves behind is killed. On failure the first failing rank's text is printed
    last.
    """
    put_away(run_directory)
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def begin() -> None:
        stop_signals.block()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    signals = StopSignals()
    with signals.listening():
        process = subprocess.Popen(command, env=dict(environment), start_new_session=True, preexec_fn=begin)
        _wait(process.pid, run_directory, signals)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = exit_code(run_directory, process.wait(), until=until)
    if code is not ExitCode.DONE:
        print(failure_report(run_directory, code), file=sys.stderr, flush=True)
    return Outcome(exit_code=code, interrupted=bool(signals.received))


def _wait(pid: int, run_directory: Path, signals: StopSignals) -> None:
    """Pass signals on until a command has ended, or should have: soon after one of its ranks has.

    It is not reaped yet, so that its process group id cannot be anybody else's.
    """
    ranks: set[int] = set()
    failed_at: float | None = None
    look_at = time.monotonic()
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        signals.pass_on(pid)
        ranks |= _children(pid)
        now = time.monotonic()
        if failed_at is None and any(_died(rank) for rank in ranks):
            failed_at = now
        if failed_at is None and now >= look_at:
            look_at = now + _LOOK_SECONDS
            failed_at = now if _has_hung_or_lost_a_peer(run_directory) else None
        if failed_at is not None and now - failed_at > _GRACE_SECONDS:
            return  # a frozen rank does not end by SIGTERM, and DeepSpeed's launcher would wait for it half a minute
        time.sleep(_POLL_SECONDS)


def _has_hung_or_lost_a_peer(run_directory: Path) -> bool:
    """Return whether a rank has ended in a way in which no other one can go on."""
    try:
        if read_json(run_directory / RANK_EXIT)["exit_code"] == ExitCode.HANG:
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or half of one
    first = first_error(run_directory)
    return first is not None and _is_about_a_lost_peer(first)


def _children(pid: int) -> set[int]:
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()  # it has ended


def _died(pid: int) -> bool:
    """Return whether a signal has ended a process that nobody has reaped yet; Linux tells a process's own user."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return False
    return fields[0] == "Z" and os.WIFSIGNALED(int(fields[-1]))


def exit_code(run_directory: Path, command_code: int, *, until: str | None = None) -> ExitCode:
    """Return the run's exit code: the first failing rank's own, else the command's if it is one of ours.

    Else PEER_LOST, if a rank could say that another one has gone, or FAILED. 0 is only believed if the ledger says that
    the run, or its training stage `until`, is done.
    """
    try:
        return ExitCode(read_json(run_directory / RANK_EXIT)["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a killed rank leaves no file, or half of one
    if command_code == 0:
        return ExitCode.DONE if is_done(run_directory, until=until) else ExitCode.FAILED
    if command_code in list(ExitCode):
        return ExitCode(command_code)
    first = first_error(run_directory)
    return ExitCode.PEER_LOST if first is not None and _is_about_a_lost_peer(first) else ExitCode.FAILED


def failure_report(run_directory: Path, code: ExitCode) -> str:
    """Return what went wrong, ending with the text of the rank that failed first."""
    if code is ExitCode.STOPPED:
        return f"run {run_directory.name} was told to stop and has left in order ({int(code)}); resume=auto goes on"
    head = f"run {run_directory.name} ended with exit code {int(code)} ({code.name}); logs: {run_directory / 'logs'}"
    first = first_error(run_directory)
    if first is None:
        return f"{head}\nno rank could say why: killed from outside, out of memory, or crashed in native code"
    return f"{head}\nfirst failing rank: {first.stem}\n{first.read_text(encoding='utf-8', errors='replace').rstrip()}"


def first_error(run_directory: Path) -> Path | None:
    """Return the error file of the rank that failed first; one that only lost its peers comes after all others."""
    files = list((run_directory / "logs").glob(RANK_ERRORS))
    return min(files, key=lambda file: (_is_about_a_lost_peer(file), file.stat().st_mtime_ns, file.name), default=None)


def _is_about_a_lost_peer(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as lines:
        return "PeerLost" in lines.readline()
