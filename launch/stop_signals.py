"""Pass a wish to stop on to the ranks of a command, and to nothing else of it.

A launcher must not hear of it: DeepSpeed's kills its ranks 30 s after a SIGTERM, saved or not, and dies of a SIGUSR1
(0.19.8). A rank's helpers must not either. So a command is started with the signals blocked, which all its processes
inherit: a rank that is still importing finds the signal waiting for it (training/fault_tolerance/signals.py).
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from training.process_identity import start_time, stat_fields

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def block() -> None:
    """Block the signals in this process and what it starts; for a child between fork and exec."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class StopSignals:
    """The signals that this process received while its command ran."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._told: set[tuple[int, str]] = set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals instead of dying of them."""
        previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def pass_on(self, session: int) -> None:
        """Tell every rank that was not told yet, once: how often somebody asks for a save changes nothing.

        To be called again and again: a rank may start later than the signal comes. Only a second SIGINT, from a person
        who does not want to wait, kills the whole command.

        Args:
            session: process id of the command, which leads a session of its own.
        """
        if not self.received:
            return
        if self.received.count(signal.SIGINT) > 1:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(session, signal.SIGKILL)
            return
        for pid in ranks_of(session):
            process = (pid, start_time(pid))
            if process not in self._told:
                self._told.add(process)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, self.received[0])

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))
        if self.received == [signal.SIGINT]:
            print("stopping: all ranks save at the end of this step; Ctrl-C again kills them unsaved", file=sys.stderr)


def ranks_of(session: int) -> list[int]:
    """Return the ranks below a session's leader: what a launcher gave a RANK, without what these have started."""
    parents = _parents()
    found: list[int] = []
    below = {session}
    while below:
        ranks = {pid for pid in below if _has_rank(pid)}
        found += sorted(ranks)
        below = {pid for pid, parent in parents.items() if parent in below - ranks}
    return found


def _parents() -> dict[int, int]:
    """Return process id -> its parent's, of all living processes."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent, *_ = stat_fields(int(entry.name))
                if state != "Z":
                    parents[int(entry.name)] = int(parent)
    return parents


def _has_rank(pid: int) -> bool:
    try:
        return any(word.startswith(b"RANK=") for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return False  # ended meanwhile, or another user's
