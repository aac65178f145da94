"""Start a run directory's ranks through the fork server, see them end, and leave none behind."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).parents[2]

_ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    # pyarrow's allocator would start a thread on import, and what has threads must not be forked.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
_LAUNCHER_WORDS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Started:
    """The processes of one start."""

    def __init__(self, *, launcher: int, ranks: Sequence[int]) -> None:
        self.launcher = launcher
        self.ranks = tuple(ranks)
        self.victims = ("launcher", *(f"rank {rank}" for rank in range(len(ranks))))
        """What can be killed."""
        # Descriptors, because a process id may be used again.
        self._descriptors = [os.pidfd_open(pid) for pid in (launcher, *ranks)]

    def kill(self, victim: str) -> bool:
        """Send SIGKILL, as an out-of-memory killer or a lost node would; return whether the victim was still there."""
        return self.send(victim, signal.SIGKILL)

    def send(self, victim: str, number: signal.Signals) -> bool:
        """Send a signal; return whether the victim was still there."""
        try:
            signal.pidfd_send_signal(self._descriptors[self.victims.index(victim)], number)
        except ProcessLookupError:
            return False
        return True

    def has_ended(self, victim: str) -> bool:
        """Return whether a victim's process has ended, reaped or not."""
        poll = select.poll()
        poll.register(self._descriptors[self.victims.index(victim)], select.POLLIN)
        return bool(poll.poll(0))

    def pid_of(self, victim: str) -> int:
        """Return a victim's process id."""
        return (self.launcher, *self.ranks)[self.victims.index(victim)]

    def close(self) -> None:
        """Let go of the processes, once they have ended."""
        for descriptor in self._descriptors:
            os.close(descriptor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """What is left of a start."""

    processes: tuple[int, ...]
    """Those that still live."""
    exit_codes: dict[int, int]
    """Of those that ended, by process id; negative if a signal ended it. A rank is missing if its launcher reaped it
    and was killed before it could tell."""


class ForkServer:
    """tests.drills.fork_server in a process of its own; leaving the context ends it and everything it forked."""

    def __init__(self, *, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            prefix: a command that runs it, and so everything that it forks, in some way.
            environment: more of it.
        """
        inherited = {key: value for key, value in os.environ.items() if key not in _LAUNCHER_WORDS}
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.drills.fork_server"],
            cwd=REPOSITORY,
            env=inherited | _ENVIRONMENT | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        finally:
            self._process.kill()  # its launchers die with it, and their ranks with them

    def start(
        self, run_directory: Path, *, world_size: int, output: Path, environment: Mapping[str, str] | None = None
    ) -> Started:
        """Start the ranks of a run directory, continuing what is there; what they print is added to `output`."""
        return self.start_with([str(run_directory)], world_size=world_size, output=output, environment=environment)

    def start_with(
        self, words: Sequence[str], *, world_size: int, output: Path, environment: Mapping[str, str] | None = None
    ) -> Started:
        """Start ranks with other arguments, such as overrides, and resume=auto."""
        answer = self._ask(
            {
                "start": [*words, "resume=auto"],
                "world_size": world_size,
                "output": str(output),
                "environment": dict(environment or {}),
            }
        )
        return Started(launcher=answer["launcher"], ranks=answer["ranks"])

    def wait(self, seconds: float) -> Left:
        """Return what is left of the start after some seconds, or as soon as nothing is."""
        answer = self._ask({"wait": seconds})
        codes = {int(pid): code for pid, code in answer["exit_codes"].items()}
        return Left(processes=tuple(answer["left"]), exit_codes=codes)

    def kill_all(self) -> None:
        """Kill what is left of the start."""
        self._ask({"kill_all": None})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with {self._process.wait(timeout=30)}; its words are above")
        return json.loads(line)
