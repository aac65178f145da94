"""The two threads that speak to the job's store, and may hang with it; others look at what they have come to."""

import _thread
import os
import threading
import time
from collections.abc import Callable, Mapping

from training.fault_tolerance.blame import Status
from training.fault_tolerance.board import Board
from training.fault_tolerance.heartbeat import Doing
from training.process_identity import Identity, myself

_STALE_SECONDS = 2.0


class Speaker(threading.Thread):
    """Says again and again what this rank does, and listens for a verdict."""

    def __init__(self, board: Board, interval_seconds: float, status: Callable[[int], Status]) -> None:
        super().__init__(name="beats", daemon=True)
        self.closing = threading.Event()
        """Set by whoever wants it to end."""
        self.beats = 0
        """Grows with every answer of the store."""
        self.lost = False
        """Whether the store is gone."""
        self.heard: str | None = None
        """The verdict, once there is one."""
        self.store_host: Identity | None = None
        """The process that holds the store: rank 0, unless torchrun's agent does (None then, and until it is known)."""
        self._board = board
        self._interval_seconds = interval_seconds
        self._status = status

    def run(self) -> None:
        """Speak until `closing`, or until the store is gone."""
        in_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torch/distributed/rendezvous.py
        try:
            self._board.introduce(myself())
            while True:
                self.heard = self._board.beat(self._status(self.beats)) or self.heard
                if self.store_host is None and not in_agent:
                    self.store_host = self._board.who(0)
                self.beats += 1
                if self.closing.wait(self._interval_seconds):
                    return
        except RuntimeError:
            self.lost = True


class Suspicion:
    """A first look at the table, by one rank of all whose time is nearly up."""

    def __init__(self, connect: Callable[[], Board], doing: Doing, *, attempt: int, look_seconds: float) -> None:
        self.doing = doing
        self.attempt = attempt
        self._look_seconds = look_seconds
        self.board: Board | None = None
        """A connection of its own, made only now: thousands of ranks share one server."""
        self.before: Mapping[int, Status] | None = None
        """The table, if this rank was the first to look; it has to decide then."""
        self.failed = False
        """Whether the store is gone."""
        self._begun = time.monotonic()
        self._connect = connect
        _thread.start_new_thread(self._look, ())  # not Thread.start: see `board.within`

    @property
    def is_ripe(self) -> bool:
        """Whether the look is so long ago that a rank which lives has spoken since."""
        return time.monotonic() - self._begun > self._look_seconds

    @property
    def is_stale(self) -> bool:
        """Whether it is so long ago that the rank that was first should have decided."""
        return time.monotonic() - self._begun > self._look_seconds + _STALE_SECONDS

    def _look(self) -> None:
        question = f"{self.doing.section}-{self.doing.step}-{self.attempt}"
        try:
            self.board = self._connect()
            if self.board.is_first(question):
                self.before = self.board.table()
        except RuntimeError:
            self.failed = True
