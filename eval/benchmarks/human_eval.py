"""HumanEval: is the function that the model completes the one that was asked for? lm_eval's task calls what is here.

A filter sees the answers to all problems at once, so several programs run at a time; `process_results` sees one. The
published scorer runs the test in the program's process; here they are apart (`eval/sandbox/functions.py`), which
right solutions do not notice, and programs that end, patch or deceive their test do.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from eval.reliability import scores_of_tries
from eval.sandbox.functions import FunctionCheck, check_functions
from eval.sandbox.limits import Limits

LIMITS = Limits(wall_seconds=20.0, tmp_bytes=0)
"""Of each program, and of each test: CPU time decides, which does not depend on load; none of them needs a file."""
_MOST_WORKERS = 16


def verdicts(answers: Sequence[Sequence[str]], docs: Sequence[Mapping[str, str]]) -> list[list[dict[str, Any]]]:
    """Return for every try at every problem whether it passed, and why not."""
    checks = [
        FunctionCheck(
            program=doc["prompt"] + answer, function=doc["entry_point"], context=doc["prompt"], test=doc["test"]
        )
        for doc, tries in zip(docs, answers, strict=True)
        for answer in tries
    ]
    workers = min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    found = iter(check_functions(checks, workers=workers, limits=LIMITS))
    return [[asdict(next(found)) for _ in tries] for tries in answers]


def process_results(doc: Mapping[str, str], results: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Return a problem's scores; the filter leaves one list of verdicts, one per try."""
    (tries,) = results
    return scores_of_tries(sum(verdict["passed"] for verdict in tries), len(tries))
