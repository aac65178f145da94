"""Runs calls with the leaderboard's own code; started by `simulator`, as a process of its own that knows nothing else.

Reads one JSON object a line from its input and writes one to its output:

    {"entry": …, "turns": [[[call, …], …], …], "answer": null, "seconds": s}  ->  {"results": [text, …]}
    the same with "answer": [[call, …], …]                                    ->  {"fault": null or a sentence}

Every request starts from the entry's first state, so that nothing is left of earlier ones: `turns` holds the calls of
all steps of all turns so far. The results are those of the last step; the fault is what the checker says of the whole.
A request that takes longer than its seconds ends the process.
"""

import json
import os
import resource
import signal
import sys
from itertools import count
from typing import Any

_LARGEST_MEMORY_BYTES = 2**31
_LARGEST_FILE_BYTES = 2**20
"""Of what the code may print on stderr; it has no file to write."""


def main(package: str) -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the code prints must not stand among the answers
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (_LARGEST_MEMORY_BYTES, _LARGEST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE_BYTES, _LARGEST_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path.insert(0, package)
    from bfcl_eval.eval_checker.multi_turn_eval import (  # pyright: ignore[reportMissingImports]
        multi_turn_checker,
        multi_turn_utils,
    )

    answers.write('{"ready": true}\n')
    answers.flush()
    for number, line in zip(count(), sys.stdin, strict=False):
        request = json.loads(line)
        # The kernel ends the process: a long computation in C would not let a handler of Python's run.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        answer = _answer(request, f"request{number}", multi_turn_checker, multi_turn_utils)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(request: dict[str, Any], name: str, checker: Any, utils: Any) -> dict[str, Any]:
    """Return the answer to a request.

    Args:
        request: see above.
        name: the leaderboard's code keeps states in its globals, under the name of the model.
        checker: module multi_turn_checker.
        utils: module multi_turn_utils.
    """
    entry, turns = request["entry"], request["turns"]
    try:
        if request["answer"] is not None:
            verdict = checker.multi_turn_checker(turns, request["answer"], entry, "", name)
            return {"fault": None if verdict["valid"] else f"{verdict['error_type']}: {verdict['error_message']}"}
        results: list[str] = []
        for step in (step for turn in turns for step in turn):
            results, _ = utils.execute_multi_turn_func_call(
                step,
                entry["initial_config"],
                entry["involved_classes"],
                name,
                entry["id"],
                long_context="long_context" in entry["id"],
            )
        return {"results": results}
    finally:
        for key in [key for key in vars(utils) if key.startswith(f"{name}_")]:
            delattr(utils, key)


if __name__ == "__main__":
    main(sys.argv[1])
