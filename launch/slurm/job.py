"""The batch node's process of a job, from its first to its last second. Started by the batch script.

    python -m launch.slurm.job [--until=TRAINING_STAGE] RUN_DIR …       one RUN_DIR, or one per task of an array

It checks the nodes, starts the ranks, passes Slurm's warning of the time limit on to them, and decides what follows
from how they end: `scontrol requeue` of this same job, or an end with the run's exit code.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Self

from training.errors import AutarkyError, ExitCode

_PATIENCE_SECONDS = 60.0
"""More than what a rank does last: a report, wandb's last records (15 s), Slurm's KillWait (30 s)."""
_LOOK_SECONDS = 0.25


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

    def run_step(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        is_ending: Callable[[], bool],
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> int:
        """Run an srun command to its end, handing wishes on to it; return its exit code.

        Args:
            command: the command.
            environment: its environment.
            is_ending: whether a rank has left already; srun would wait for ever for one that nobody can report any
                more (its slurmstepd was killed, Slurm 22.05).
            patience_seconds: how long the others may take to leave after that; then srun is told to end the step, and
                killed if it does not.
        """
        with subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL) as step:
            self._step = step.pid
            if self.received:  # between the last look and the line above
                self._forward()
            last_second: float | None = None
            # Not reaped before the handler has forgotten it: its process id cannot be anybody else's.
            while os.waitid(os.P_PID, step.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                time.sleep(_LOOK_SECONDS)
                now = time.monotonic()
                if last_second is None:
                    last_second = now + patience_seconds if is_ending() else None
                elif now > last_second + patience_seconds:
                    os.kill(step.pid, signal.SIGKILL)
                elif now > last_second:
                    os.kill(step.pid, signal.SIGTERM)
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
