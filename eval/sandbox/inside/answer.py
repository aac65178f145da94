"""Runs in the answer's sandbox: a model's program, and calls of one of its functions by the checker at the other end.

    answer.py FUNCTION

Nothing in here can be trusted once the program runs, which may change all of it. It can only send values.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, "/code")

from eval.sandbox.inside.values import from_line, to_line


def main() -> None:
    """Run the program, then call its function for every line that comes in."""
    calls = os.fdopen(os.dup(0), encoding="ascii")
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the program prints is no reply
    namespace: dict[str, Any] = {"__name__": "answer"}
    failed = _raised_by(lambda: _load("/code/program.py", namespace))
    for line in calls:
        reply = failed or _reply(lambda line=line: namespace[sys.argv[1]](*from_line(line)))
        replies.write(reply)
        replies.flush()


def _load(path: str, namespace: dict[str, Any]) -> None:
    with open(path, encoding="utf-8") as file:
        source = file.read()
    exec(compile(source, "answer", "exec"), namespace)


def _reply(call: Callable[[], object]) -> str:
    replies: list[str] = []
    return _raised_by(lambda: replies.append(to_line(["returned", call()]))) or replies[0]


def _raised_by(call: Callable[[], None]) -> str | None:
    try:
        call()
    except BaseException as error:  # SystemExit, too: a program that ends has not returned
        return to_line(["raised", f"{type(error).__name__}: {error}"[:200]])
    return None


if __name__ == "__main__":
    main()
