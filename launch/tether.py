"""Hold a command whose ranks run on other hosts: nothing of it outlives the starter, and a wish to stop reaches rank 0.

    python -m launch.tether RUN_DIR HOST [SSH_OPTION…] -- COMMAND…

The kernel kills a child whose parent dies, but not the grandchildren, and pdsh (2.34) gives each of its ssh clients a
session of its own: kill the group, and they keep the connections and so the ranks alive. So there are two processes.
The first may be killed like any other. The second, in a session of its own, is told of that by SIGTERM; orphans below
it come back to it, so it can kill all of them. On the hosts the ends of the ssh sessions do the rest
(training/fault_tolerance/lifeline.py).

SIGTERM, SIGUSR1 or SIGINT to the first process is the wish of a person or a scheduler. pdsh would end the ssh sessions,
and with them the ranks, unsaved. So the command never sees it; rank 0 is told, on HOST, and all ranks save and leave.
Exit code: the command's (128 + N if signal N ended it).
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from training.lease import newest_holder

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
"""prctl(2), Linux."""
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_LOOK_SECONDS = 0.1
_SSH_SECONDS = 20.0
_AGAIN_SECONDS = 5.0


def main(argv: Sequence[str]) -> int:
    """Run the command to its end and return its exit code."""
    end = argv.index("--")
    run_directory, host, *ssh_options = argv[:end]
    wish = Wish(Path(run_directory), host, ssh_options)
    for number in _SIGNALS:
        signal.signal(number, wish.note)
    me = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    keeper = os.fork()
    if keeper == 0:
        environment = {name: value for name, value in os.environ.items() if name != "RANK"}
        os._exit(_keep(argv[end + 1 :], environment, starter=me))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    while True:
        ended, status = os.waitpid(keeper, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        wish.pass_on()
        time.sleep(_LOOK_SECONDS)


class Wish:
    """A wish to stop, and the rank that is told of it."""

    def __init__(self, run_directory: Path, host: str, ssh_options: Sequence[str]) -> None:
        self._run_directory, self._host, self._ssh_options = run_directory, host, ssh_options
        self._signal: signal.Signals | None = None
        self._next_try = 0.0
        before = newest_holder(run_directory)
        self._number_before = before.number if before else 0

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Remember the first signal; a signal handler."""
        if self._signal is None:
            self._signal = signal.Signals(number)

    def pass_on(self) -> None:
        """Tell rank 0 if there is a wish it was not told of; to be called again and again."""
        if self._signal is None or time.monotonic() < self._next_try:
            return
        told = self._tell_rank_0("USR1" if self._signal is signal.SIGUSR1 else "TERM")
        self._next_try = float("inf") if told else time.monotonic() + _AGAIN_SECONDS

    def _tell_rank_0(self, name: str) -> bool:
        """Return whether rank 0 was told; not as long as it has not taken the run directory's lease."""
        holder = newest_holder(self._run_directory)
        if holder is None or holder.number <= self._number_before:
            return False
        remote = f"grep -q training.train /proc/{holder.pid}/cmdline && kill -s {name} {holder.pid}"
        command = ["ssh", *self._ssh_options, self._host, remote]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=_SSH_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"rank 0 on {self._host} could not be told to stop: {error}", file=sys.stderr, flush=True)
            return False
        return done.returncode == 0


def _keep(command: Sequence[str], environment: Mapping[str, str], *, starter: int) -> int:
    """Run the command until it ends or the starter dies; nothing below this process is left then.

    The signals are blocked, which the command inherits.
    """
    os.setsid()
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def starter_died(_number: int, _frame: FrameType | None) -> None:
        _kill_all_below()
        os._exit(128 + signal.SIGTERM)

    process = subprocess.Popen(command, env=dict(environment))
    signal.signal(signal.SIGTERM, starter_died)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    if os.getppid() != starter:  # it died before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)
    code = process.wait()
    _kill_all_below()
    return code if code >= 0 else 128 - code


def _kill_all_below() -> None:
    """Kill the descendants, generation after generation: a killed one's children become this process's own."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    while pids := [int(word) for word in children.read_text().split()]:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so its number is nobody else's
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
