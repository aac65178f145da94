"""A rank ends when its launcher does: no orphan keeps a device, or writes beside the run's next attempt.

Three ropes, because a launcher is a chain of processes (submit -> deepspeed runner -> deepspeed launch -> rank): the
kernel kills a rank whose parent dies, and a thread watches the ancestors further up. A rank that is still importing
when its launcher is killed has no ancestors left to look at: `launch.submit` tells its ranks who it is.

On another node the chain ends at the remote shell's server (sshd, or mpirun's orted). The server's process of a session
ends with the connection, so with the ssh client on the machine where the launcher was killed: it belongs to the chain.
"""

import ctypes
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from training.fault_tolerance.signals import StopRequest
from training.process_identity import LAUNCHER_VARIABLE, start_time, stat_fields

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAUNCHER_COMMANDS = frozenset(
    {
        *("deepspeed", "deepspeed.pt", "torchrun", "accelerate", "accelerate-launch"),
        *("mpirun", "mpiexec", "orterun", "orted", "prted", "hydra_pmi_proxy"),
    }
)
_LAUNCHER_MODULES = ("deepspeed.launcher.", "torch.distributed.", "accelerate.commands.", "launch.submit")
_POLL_SECONDS = 0.25
_SAME_MOMENT_SECONDS = 0.2
_LEAVING_SECONDS = 30.0
"""What DeepSpeed's launcher, too, gives a rank between SIGTERM and SIGKILL (0.19.8)."""


@dataclass(frozen=True, slots=True)
class _Ancestor:
    pid: int
    start_time: str
    """Field 22 of /proc/pid/stat; a process id may be used again, the pair may not."""


def tie_to_launcher(stop_request: StopRequest | None = None) -> None:
    """Make sure that this process is killed within a second after any process of its launcher has died.

    A scheduler that tells every process of a job to stop ends the `deepspeed` command at once, which does not listen;
    a rank that was told, too, is on its way and gets the time to save.
    """
    if not Path("/proc/self/stat").exists():
        return  # not Linux: the launcher's own cleaning up has to do
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    ancestors = [*_launcher_ancestors(), *_named_launcher()]
    if ancestors:
        threading.Thread(target=_watch, args=(ancestors, stop_request), name="lifeline", daemon=True).start()


def _launcher_ancestors() -> list[_Ancestor]:
    """Return the unbroken chain of ancestors that belong to a launcher, the parent first."""
    ancestors: list[_Ancestor] = []
    pid = os.getppid()
    while pid > 1:
        try:
            words = _words(pid)
            fields = stat_fields(pid)
        except OSError:
            break
        if not any(_names_launcher(word) for word in words):
            return [*ancestors, *_ssh_session(pid)] if ancestors else []
        ancestors.append(_Ancestor(pid, fields[19]))
        pid = int(fields[1])
    return ancestors


def _ssh_session(pid: int) -> list[_Ancestor]:
    """Return the ssh server's process that a launcher was started by, seen from the launcher's parent.

    Only of a session that was opened to run the launcher (no terminal): a person may log out while the job goes on.
    """
    try:
        words = _words(pid)
        if "-c" in words and any(name in words[-1] for name in (*_LAUNCHER_COMMANDS, *_LAUNCHER_MODULES)):
            pid = int(stat_fields(pid)[1])  # the shell that ssh's command line is given to
            words = _words(pid)
        title = words[0]
        if title.startswith(("sshd: ", "sshd-session: ")) and title.endswith("@notty"):
            return [_Ancestor(pid, start_time(pid))]
    except OSError:
        pass
    return []


def _words(pid: int) -> list[str]:
    """Return the command line of a process; its first word may be a title that the process gave itself."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0 ").split("\0")


def _named_launcher() -> list[_Ancestor]:
    """Return the launcher that the environment names, whether it still lives or not."""
    pid, _, started = os.environ.get(LAUNCHER_VARIABLE, "").partition(":")
    return [_Ancestor(int(pid), started)] if pid else []


def _names_launcher(word: str) -> bool:
    """Return whether a whole word of a command line is a launcher's; a shell may have one inside its `-c` text."""
    return Path(word).name in _LAUNCHER_COMMANDS or word.startswith(_LAUNCHER_MODULES)


def _watch(ancestors: list[_Ancestor], stop_request: StopRequest | None) -> None:
    while all(_is_alive(ancestor) for ancestor in ancestors):
        time.sleep(_POLL_SECONDS)
    if stop_request is not None:
        time.sleep(_SAME_MOMENT_SECONDS)
        time.sleep(_LEAVING_SECONDS if stop_request.is_told else 0.0)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_alive(process: _Ancestor) -> bool:
    return start_time(process.pid) == process.start_time
