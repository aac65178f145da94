"""Runs in the checker's sandbox: a benchmark's test, with a stand-in for the function that it tests.

    checker.py FUNCTION

The stand-in sends its arguments to the answer's sandbox and returns what comes back. The verdict is the last line on
stderr, to which the answer has no way: `{"passed": …, "why": …}`, `{"ended": true}` if the answer's process ended, or
`{"broken": …}` if the test cannot be run at all.
"""

import json
import os
import sys
import traceback
from typing import Any

sys.path.insert(0, "/code")

from eval.sandbox.inside.values import LARGEST_LINE_BYTES, from_line, to_line

_SHOWN_CHARACTERS = 200


class AnswerEnded(Exception):
    """The answer's process is gone."""


class AnswerRaised(Exception):
    """The answer raised instead of returning."""


def main(function: str) -> dict[str, Any]:
    """Return the verdict."""
    replies = os.fdopen(os.dup(0), encoding="ascii")
    calls = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a test prints is no call

    def stand_in(*arguments: object) -> Any:
        try:
            calls.write(to_line(arguments))
            calls.flush()
            line = replies.readline(LARGEST_LINE_BYTES)
        except BrokenPipeError:
            line = ""
        if not line:
            raise AnswerEnded
        outcome, value = from_line(line)
        if outcome != "returned":
            raise AnswerRaised(str(value)[:_SHOWN_CHARACTERS])
        return value

    namespace: dict[str, Any] = {"__name__": "test"}
    try:
        _run("context", namespace)
        namespace[function] = stand_in
        test = _run("test", namespace)
        check = namespace["check"]
    except Exception as error:
        return {"broken": f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]}
    try:
        check(stand_in)
    except AnswerEnded:
        return {"ended": True}
    except AnswerRaised as error:
        return {"passed": False, "why": f"raised {error}"}
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "test"]
        where = test.splitlines()[lines[-1] - 1].strip() if lines and lines[-1] else ""
        what = "not so" if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        return {"passed": False, "why": f"{what}: {where}"[:_SHOWN_CHARACTERS]}
    return {"passed": True, "why": ""}


def _run(name: str, namespace: dict[str, Any]) -> str:
    with open(f"/code/{name}.py", encoding="utf-8") as file:
        source = file.read()
    exec(compile(source, name, "exec"), namespace)
    return source


if __name__ == "__main__":
    verdict = main(sys.argv[1])
    sys.stderr.write("\n" + json.dumps(verdict) + "\n")
