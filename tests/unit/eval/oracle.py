"""Models that know the answer, or never do: they show that a benchmark's scoring can tell one from the other.

They see what every model sees, lm_eval's requests; each request carries its item, and that is where they look it up.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

UNLIKELY = -100.0


class OracleLM(LM):
    """Gives the right answer to everything, and the likelihood 1 to it and to every text."""

    def __init__(self, answers: Mapping[str, Callable[[Any], str]]) -> None:
        """Build it.

        Args:
            answers: task -> what returns the right text of an item, for tasks that generate.
        """
        super().__init__()
        self._answers = answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        # lm_eval makes one request per choice; idx is the choice's.
        return [(0.0, True) if request.idx == request.doc["answer"] else (UNLIKELY, False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [0.0 for _ in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [self._answers[str(request.task_name)](request.doc) for request in requests]


class WrongLM(LM):
    """Prefers a wrong choice, writes what is never asked for, and spends two bits on every byte of a text."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [(UNLIKELY, False) if request.idx == request.doc["answer"] else (0.0, True) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [-2 * math.log(2) * len(request.args[0].encode()) for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return ["I do not know." for _ in requests]


def task_config(task_file: Path, items: Path, cache: Path) -> dict[str, Any]:
    """Return an lm_eval task with its items."""
    config = load_yaml(task_file, resolve_func=True)
    return config | {"dataset_kwargs": {"data_files": {"test": str(items.resolve())}, "cache_dir": str(cache)}}


def measure(lm: LM, configs: Sequence[dict[str, Any]], *, limit: int | None = None) -> dict[str, dict[str, float]]:
    """Return the metrics of tasks: task -> name -> value, without lm_eval's filter in the name."""
    results = evaluator.simple_evaluate(
        model=lm,
        tasks=list(configs),
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        limit=limit,
        log_samples=False,
    )
    assert results is not None
    found = cast("dict[str, dict[str, dict[str, Any]]]", results)["results"]
    # What is no number is the standard error, which is not asked for.
    return {
        task: {name.removesuffix(",none"): value for name, value in metrics.items() if isinstance(value, float)}
        for task, metrics in found.items()
    }


def answer_of(config: Mapping[str, Any]) -> Callable[[Any], str]:
    """Return what reads a generating task's right answer from an item."""
    target: Any = config["doc_to_target"]
    if callable(target):
        return lambda doc: f" {cast('Callable[[Any], str]', target)(doc)}"
    if "canonical_solution" in target:
        return lambda doc: doc["canonical_solution"]
    return lambda doc: " " + (", ".join(doc["answers"]) if "answers" in doc else doc["answer"])
