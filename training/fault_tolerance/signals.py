"""SIGTERM and SIGUSR1 are wishes: all ranks save at the end of the same step and leave in order."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Self

from training.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send: SIGTERM before a preemption, SIGUSR1 where a script asks for it (`sbatch --signal`)."""


class StopRequest:
    """Whether this process was told to stop. The handler only notes it; whoever polls decides when to act."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal that came; None as long as none did."""

    @classmethod
    def listen(cls) -> Self:
        """Return a request that notes signals from now on; only the main thread may call it."""
        request = cls()
        for number in SIGNALS:
            signal.signal(number, request._note)
        return request

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)

    def raise_together(self, agree: Callable[[bool], bool]) -> None:
        """Do nothing unless any rank was told to stop; collective.

        Args:
            agree: returns True on every rank if every rank passed True.

        Raises:
            Stopped: on every rank alike.
        """
        if not agree(self.signal is None):
            name = self.signal.name if self.signal else "a signal to another rank"
            raise Stopped(f"told to stop by {name}\n  -> everything is saved; start again with resume=auto")
