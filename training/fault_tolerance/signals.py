"""SIGTERM, SIGUSR1 and a first SIGINT are wishes: all ranks save at the end of the same step and leave in order.

The signals are blocked, and a thread of their own waits for them. So they are noted at once while the main thread is
inside a collective, no system call of a library is interrupted by them, and the processes that a rank starts inherit
the block: a scheduler that signals everything in a job does not take a rank's helpers away before the save.
"""

import os
import signal
import sys
import threading
import time
from typing import Self

from training.errors import ExitCode, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What schedulers send: SIGTERM before a preemption, SIGUSR1 where a script asks for it (`sbatch --signal`). And
Ctrl-C."""
ECHO_SECONDS = 1.0
"""One Ctrl-C may come twice, from the terminal and from a launcher that passes it on."""
START_UP_SECONDS = 3.0
"""How long a rank that was told while it starts waits for the others to start, too: one may have died."""
_LONG_SECONDS = 3600.0


class StopRequest:
    """Whether this process was told to stop. A signal only makes a note of it; whoever polls decides when to act."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal that came; None as long as none did."""
        self._told_at = 0.0
        self._interrupted_at: float | None = None
        self._starting = True
        self._leaving = threading.Lock()

    @classmethod
    def listen(cls) -> Self:
        """Return a request that notes signals from now on; the process must not have any other thread yet."""
        request = cls()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=request._wait, name="signals", daemon=True).start()
        return request

    @property
    def is_told(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def stopped(self) -> Stopped:
        """Return the error that ends a rank because it, or another one, was told to stop."""
        name = self.signal.name if self.signal else "a signal to another rank"
        return Stopped(f"told to stop by {name}\n  -> what was done is saved; resume=auto goes on from there")

    def has_started(self) -> None:
        """Say that all ranks are there and will poll together: from now on none leaves by itself."""
        with self._leaving:
            self._starting = False

    def _wait(self) -> None:
        while True:
            came = signal.sigtimedwait(SIGNALS, self._patience_seconds())
            if came is not None:
                self._note(signal.Signals(came.si_signo))
            elif self._starting:
                self._leave_alone()

    def _patience_seconds(self) -> float:
        if not (self.is_told and self._starting):
            return _LONG_SECONDS
        return max(0.0, self._told_at + START_UP_SECONDS - time.monotonic())

    def _note(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.signal is None:
            self._told_at = now
            self.signal = number
        if number is signal.SIGINT:
            if self._interrupted_at is not None and now - self._interrupted_at > ECHO_SECONDS:
                os.kill(os.getpid(), signal.SIGKILL)  # a person who asks twice does not want to wait for a save
            self._interrupted_at = self._interrupted_at or now

    def _leave_alone(self) -> None:
        with self._leaving:
            if self.signal is not None and self._starting:
                print(f"told to stop by {self.signal.name} before all ranks had started", file=sys.stderr, flush=True)  # noqa: T201
                os._exit(ExitCode.STOPPED)
