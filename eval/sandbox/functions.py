"""Does a function in a model's program pass a benchmark's test? The two never share a process.

The answer runs in one sandbox, the test in another; between them go arguments one way and plain values the other
(`inside/values.py`). So the program cannot see the test, patch what it calls, end it early with success, or return an
object that equals everything: to pass, it has to return the right values.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eval.sandbox.bubblewrap import Sandbox
from eval.sandbox.command_line import CODE
from eval.sandbox.limits import Limits
from eval.sandbox.running import Output, ending_of, follow
from training.errors import DataError

_INSIDE = "eval/sandbox/inside"


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionCheck:
    """A program of a model, and the test of one of its functions."""

    program: str
    function: str
    """Its name."""
    context: str
    """What the test may use besides the function. It is the benchmark's, as the test is, and runs beside the test."""
    test: str
    """Defines `check(function)`, which calls it with plain values by position, and raises if it is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a check found."""

    passed: bool
    why: str
    """Why not, in a few hundred characters; empty if it passed."""


def check_functions(checks: Sequence[FunctionCheck], *, workers: int, limits: Limits | None = None) -> list[Verdict]:
    """Return a verdict on each, in their order; so many are checked at a time.

    Raises:
        SandboxUnavailable: this host cannot isolate programs; none was run.
        DataError: a test itself does not run.
    """
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda check: check_function(check, limits=limits), checks))


def check_function(check: FunctionCheck, *, limits: Limits | None = None) -> Verdict:
    """Return whether a function passes its test; the limits are those of each of the two sandboxes.

    Raises:
        SandboxUnavailable: this host cannot isolate programs; none was run.
        DataError: the test itself does not run.
    """
    limits, begun = limits or Limits(), time.monotonic()
    with ExitStack() as stack:
        with ExitStack() as pipes:  # ours are closed at once: the end of one sandbox is the end of the other's pipe
            calls, calls_end = _pipe(pipes)
            replies, replies_end = _pipe(pipes)
            answer = stack.enter_context(
                _sandbox("answer.py", check, {"program.py": check.program}, limits, stdin=calls, stdout=replies_end)
            )
            benchmark = {"context.py": check.context, "test.py": check.test}
            checker = stack.enter_context(
                _sandbox("checker.py", check, benchmark, limits, stdin=replies, stdout=calls_end)
            )
        noise, words = (
            Output(descriptor=sandbox.stderr, source=sandbox, limit_bytes=limits.output_bytes)
            for sandbox in (answer, checker)
        )
        if not follow(checker, [noise, words], deadline=begun + limits.wall_seconds):
            return Verdict(passed=False, why=f"no end within {limits.wall_seconds:g} s")
        verdict = _last_verdict(words.text) if checker.wait() == 0 else {}
        if "broken" in verdict:
            raise DataError(
                f"the test of {check.function} does not run: {verdict['broken']}\n  -> prepare its benchmark again"
            )
        if "passed" in verdict:
            return Verdict(passed=verdict["passed"] is True, why=verdict["why"])
        ended, output = (answer, noise) if "ended" in verdict else (checker, words)
        ended.kill()  # it may live on without its pipe
        ending = ending_of(ended.wait(), in_time=True, overran=output.overran, words=output.text)
    who = "the program" if ended is answer else "the test"
    return Verdict(passed=False, why=f"{who} ended before the test did ({ending})")


def _sandbox(
    script: str, check: FunctionCheck, files: Mapping[str, str], limits: Limits, *, stdin: int, stdout: int
) -> Sandbox:
    arguments = [str(CODE / _INSIDE / script), check.function]
    return Sandbox({**_code(script), **files}, arguments, limits, stdin=stdin, stdout=stdout)


@cache
def _code(script: str) -> dict[str, str]:
    """Return one side's program, path -> content; both sides speak the same language of values."""
    folder = Path(__file__).parent / "inside"
    return {f"{_INSIDE}/{name}": (folder / name).read_text() for name in (script, "values.py")}


def _pipe(closed_with: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for descriptor in ends:
        closed_with.callback(os.close, descriptor)
    return ends


def _last_verdict(words: str) -> dict[str, Any]:
    """Return what the checker wrote last; the test itself may have written to stderr before."""
    try:
        return json.loads(words.rstrip().rpartition("\n")[2])
    except ValueError:
        return {}
