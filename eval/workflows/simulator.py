"""Simulated systems with a state, run by the leaderboard's own code in another process.

That code is another's, and what it runs is what a model wrote: the process has bounds on time and memory and an empty
environment, and gets only calls that `calls.safe_call` has made. It is no sandbox against code; none gets there.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from eval.workflows.tasks import WorkflowTask, package_directory
from training.errors import AutarkyError, DataError

Turns = Sequence[Sequence[Sequence[str]]]
"""The calls of each step of each turn."""

_PROGRAM = Path(__file__).with_name("simulator_process.py")
_SHOWN_CHARACTERS = 1_000


class CallFailed(AutarkyError):
    """A call could not be finished: it took too long, or more memory than there is for it."""


class Systems(Protocol):
    """What runs the calls of tasks."""

    def execute(self, task: WorkflowTask, turns: Turns) -> list[str]:
        """Return what each call of the last step returns, after all steps before it.

        Raises:
            CallFailed: the calls could not be finished.
        """
        ...

    def fault(self, task: WorkflowTask, turns: Turns) -> str | None:
        """Return what all calls of a task did not do that its answer does, or None if the task is solved.

        Raises:
            CallFailed: the calls could not be finished.
        """
        ...


class Simulator:
    """The systems of all tasks, in a process that is started again when a call has ended it."""

    def __init__(self, root: Path, *, request_seconds: float = 20.0) -> None:
        """Start the process.

        Args:
            root: folder of prepared data.
            request_seconds: limit of all calls of a try together; those of an answer take milliseconds.

        Raises:
            DataError: it does not start.
        """
        self._package = package_directory(root).resolve()
        self._request_seconds = request_seconds
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = self._start()

    def __enter__(self) -> "Simulator":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._ended()
        self._stderr.close()

    def execute(self, task: WorkflowTask, turns: Turns) -> list[str]:
        """Return what each call of the last step returns; see Systems."""
        return self._ask(task, turns, answer=None)["results"]

    def fault(self, task: WorkflowTask, turns: Turns) -> str | None:
        """Return what all calls of a task did not do, or None; see Systems."""
        return self._ask(task, turns, answer=task.answer)["fault"]

    def _ask(self, task: WorkflowTask, turns: Turns, *, answer: Any) -> dict[str, Any]:
        entry = {"id": task.id, "initial_config": task.initial_config, "involved_classes": task.involved_classes}
        request = {"entry": entry, "turns": turns, "answer": answer, "seconds": self._request_seconds}
        if self._process.poll() is not None:  # ended by something else: a request needs nothing of those before it
            self._process = self._start()
        line = self._answer_to(json.dumps(request))
        if line.endswith("\n"):
            return json.loads(line)
        code, said = self._ended()
        self._process = self._start()
        if code == -signal.SIGALRM:
            raise CallFailed(f"{task.id}: its calls took longer than {self._request_seconds:g} s")
        raise CallFailed(f"{task.id}: its calls ended the process that runs them (exit code {code}): {said}")

    def _answer_to(self, request: str) -> str:
        """Return the line that answers a request; empty or without an end where the process ended before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline()

    def _start(self) -> subprocess.Popen[str]:
        self._stderr.seek(0)
        self._stderr.truncate()
        # A fixed hash seed: the order of a set must not differ between two processes. Not -I, which would ignore it.
        command = [sys.executable, "-s", "-P", "-B", str(_PROGRAM), str(self._package)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            cwd=os.sep,
            env={"PYTHONHASHSEED": "0", "PATH": os.defpath, "TZ": "UTC"},
        )
        self._process = process
        assert process.stdout is not None
        if not process.stdout.readline():
            code, said = self._ended()
            raise DataError(
                f"{self._package} cannot be run (exit code {code}): {said}\n"
                "  -> python -m eval.prepare bfcl_multi_turn makes it; mpmath must be installed (it comes with torch)"
            )
        return process

    def _ended(self) -> tuple[int, str]:
        """Return the exit code of the process, whose output has ended, and the end of what it said."""
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what was not yet sent
                pipe.close()
        self._stderr.seek(0)
        return code, self._stderr.read().decode("utf-8", "replace").strip()[-_SHOWN_CHARACTERS:]
