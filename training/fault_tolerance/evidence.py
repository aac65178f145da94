"""What a hang leaves behind: every thread's Python stack and torch's flight record; and an end to frozen neighbours.

`SIGUSR2` writes a rank's stacks into its log at any time, even while native code holds the interpreter.
"""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from training.engine.collectives import flight_record
from training.process_identity import Identity, start_time, this_machine

_STACKS_SIGNAL = signal.SIGUSR2
_DUMP_SECONDS = 0.2
"""What a rank that is stuck in native code gets to write its stacks on request."""


class Evidence:
    """Where this rank writes down what it was doing."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._logs: Path | None = None
        self._log: IO[str] | None = None
        if sys.__stderr__ is not None:
            faulthandler.register(_STACKS_SIGNAL, file=sys.__stderr__, all_threads=True)

    def keep_in(self, run_directory: Path) -> None:
        """Write into a run directory from now on."""
        self._logs = run_directory / "logs"
        self._logs.mkdir(exist_ok=True)
        self._log = (self._logs / f"rank-{self._rank:05d}.log").open("a")  # faulthandler keeps its number only
        faulthandler.register(_STACKS_SIGNAL, file=self._log, all_threads=True)

    def write(self, reason: str) -> None:
        """Write stacks and flight record of this moment to logs/rank-NNNNN.stacks and .flight.json."""
        if self._logs is None:
            faulthandler.dump_traceback(all_threads=True)
            return
        with (self._logs / f"rank-{self._rank:05d}.stacks").open("w") as file:
            file.write(f"{reason}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        record = flight_record()
        if record is not None:
            (self._logs / f"rank-{self._rank:05d}.flight.json").write_bytes(record)


def end_neighbours(identities: Iterable[Identity]) -> None:
    """Kill those of some processes that live on this machine, after asking them for their stacks; never this one.

    A process that is stopped, or stuck in native code, does not end by SIGTERM, and its launcher waits for it.
    """
    here = this_machine()
    frozen = [who for who in identities if who.machine == here and who.pid != os.getpid()]
    for number, pause in ((_STACKS_SIGNAL, _DUMP_SECONDS), (signal.SIGKILL, 0.0)):
        for who in frozen:
            if start_time(who.pid) == who.start_time:
                os.kill(who.pid, number)
        time.sleep(pause)
