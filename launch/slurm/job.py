"""The batch node's process of a job, from its first to its last second. Started by the batch script.

    python -m launch.slurm.job [--until=TRAINING_STAGE] RUN_DIR …       one RUN_DIR, or one per task of an array

It checks the nodes, starts the ranks, passes Slurm's warning of the time limit on to them, and decides what follows
from how they end: `scontrol requeue` of this same job, or an end with the run's exit code.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Self

from training.errors import AutarkyError, ExitCode


class Wishes:
    """What this process was told by signals: SIGUSR1 before the time limit, SIGTERM at preemption and `scancel`.

    Ranks take either as the wish to save and leave. They get SIGUSR1: on SIGTERM srun would end them at once.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._step: int | None = None

    @classmethod
    def listen(cls) -> Self:
        """Return wishes that are noted from now on; only the main thread may call it."""
        wishes = cls()
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, wishes._note)
        return wishes

    def deafen(self) -> None:
        """Ignore signals from now on, in commands that this process starts too: the end is decided."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    def run_step(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run an srun command to its end, handing wishes on to it; return its exit code."""
        with subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL) as step:
            self._step = step.pid
            if self.received:  # between the last look and the line above
                self._forward()
            # Not reaped before the handler has forgotten it: its process id cannot be anybody else's.
            os.waitid(os.P_PID, step.pid, os.WEXITED | os.WNOWAIT)
            self._step = None
            return step.wait()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
        self._forward()

    def _forward(self) -> None:
        if self._step is not None:
            os.kill(self._step, signal.SIGUSR1)


def main(argv: Sequence[str]) -> int:
    """Run one start of a run; the exit code becomes the job's."""
    wishes = Wishes.listen()
    # Imported only now: no signal may be lost while the rest is read from a slow disk.
    from launch.slurm.start import run_start

    directories = [word for word in argv if not word.startswith("--")]
    until = next((word.removeprefix("--until=") for word in argv if word.startswith("--until=")), None)
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    if index >= len(directories):
        print(__doc__)
        return ExitCode.BAD_CONFIG
    try:
        return run_start(Path(directories[index]), until, wishes)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
