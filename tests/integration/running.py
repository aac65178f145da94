"""Start a job as a user does, watch its processes, hurt them, and leave nothing of it behind.

Every process of a job carries a mark in its environment, so it is found wherever it has been reparented to.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import psutil

REPOSITORY = Path(__file__).parents[2]
LONGEST_RUN_SECONDS = 400
"""A smoke run takes half a minute on two quiet cores."""

SMOKE = ["experiment=smoke", "reporting.wandb.mode=disabled"]
"""The smoke run without wandb, whose processes take a fifth of its processor time; tests of wandb turn it on."""

_MARK = "AUTARKY_TEST_JOB"
_LAUNCHER_WORDS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A job that ended by itself."""

    exit_code: int
    stdout: str
    stderr: str

    def explain(self) -> str:
        return f"exit code {self.exit_code}\n--- stdout\n{self.stdout[-4000:]}\n--- stderr\n{self.stderr[-4000:]}"


class Job:
    """A running command and all its descendants; leaving the context kills, by id, whatever is left of them."""

    def __init__(self, command: Sequence[str], *, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._mark = uuid4().hex
        self._stdout = folder / f"{self._mark}.stdout"
        self._stderr = folder / f"{self._mark}.stderr"
        environment = {key: value for key, value in os.environ.items() if key not in _LAUNCHER_WORDS}
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment | {_MARK: self._mark, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes():
            _send(process, signal.SIGKILL)
        self._process.wait(timeout=30)

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of the job."""
        return [process for process in psutil.process_iter() if self._is_mine(process)]

    def ranks(self) -> dict[int, psutil.Process]:
        """Return the training processes by their rank."""
        found = {}
        for process in self.processes():
            try:
                rank, command = process.environ().get("RANK"), process.cmdline()
            except psutil.Error:
                continue
            # The launcher names the module too but has no rank; a rank's helpers have its rank but not the module.
            if rank is not None and "training.train" in command:
                found[int(rank)] = process
        return found

    def process_named(self, word: str) -> psutil.Process:
        """Return the job's process with this word on its command line."""
        (process,) = self._named(word)
        return process

    def has_process_named(self, word: str) -> bool:
        """Return whether a living process of the job has this word on its command line."""
        return bool(self._named(word))

    def wait_until(self, moment: Callable[[], bool], *, limit_seconds: float = LONGEST_RUN_SECONDS) -> None:
        """Return as soon as the moment has come; fail if the job ended or the limit passed before."""
        deadline = time.monotonic() + limit_seconds
        while not moment():
            assert self._process.poll() is None, f"the job ended too early: {self._finished().explain()}"
            assert time.monotonic() < deadline, f"the moment did not come within {limit_seconds} s"
            time.sleep(0.002)

    def wait(self, *, limit_seconds: float = LONGEST_RUN_SECONDS) -> Finished:
        """Return the outcome of the job's first process."""
        self._process.wait(timeout=limit_seconds)
        return self._finished()

    def survivors(self, *, within_seconds: float) -> list[str]:
        """Return the command lines of the processes that still live after some seconds; [] as soon as none does."""
        deadline = time.monotonic() + within_seconds
        while left := self.processes():
            self._process.poll()  # reaps it
            if time.monotonic() > deadline:
                return [" ".join(process.cmdline()) for process in left if process.is_running()]
            time.sleep(0.1)
        return []

    def _named(self, word: str) -> list[psutil.Process]:
        return [process for process in self.processes() if word in _words(process)]

    def _finished(self) -> Finished:
        return Finished(
            exit_code=self._process.returncode,
            stdout=self._stdout.read_text(errors="replace"),
            stderr=self._stderr.read_text(errors="replace"),
        )

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return False


def submit(overrides: Sequence[str], *, folder: Path) -> Job:
    """Start `python -m launch.submit` with overrides."""
    return Job([sys.executable, "-m", "launch.submit", *overrides], folder=folder)


def run_to_end(command: Sequence[str], *, folder: Path, limit_seconds: float = LONGEST_RUN_SECONDS) -> Finished:
    """Run a command to its end and return the outcome; none of its processes may outlive it."""
    with Job(command, folder=folder) as job:
        finished = job.wait(limit_seconds=limit_seconds)
        assert job.survivors(within_seconds=30) == []
        return finished


def submit_to_end(overrides: Sequence[str], *, folder: Path) -> Finished:
    """Run `python -m launch.submit` to its end; see `run_to_end`."""
    return run_to_end([sys.executable, "-m", "launch.submit", *overrides], folder=folder)


def kill(process: psutil.Process) -> None:
    """Send SIGKILL, as an out-of-memory killer or a lost node would."""
    _send(process, signal.SIGKILL)


def only_run(root: Path) -> Path:
    """Return the one run directory under a root."""
    (directory,) = [path for path in root.iterdir() if (path / "config.yaml").is_file()]
    return directory


def run_directories(root: Path) -> Iterator[Path]:
    """Yield the run directories under a root that may not exist yet."""
    return root.glob("*/") if root.is_dir() else iter(())


def _words(process: psutil.Process) -> list[str]:
    """Return a command line; [] of a process that has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)  # psutil refuses a process id that was used again
