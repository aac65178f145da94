"""Runs a suite's benchmarks on any model of lm_eval (0.4.13), and keeps what every item came to.

lm_eval puts the questions and scores the answers; workflows run in systems of their own. On rank 0 alone.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from eval.benchmarks.bfcl import compact_prompt
from eval.benchmarks.held_out_items import is_held_out_item
from eval.benchmarks.registry import task_file
from eval.reliability import scores_of_tries
from eval.sandbox.check import check_sandbox
from eval.tasks.base import TaskResult
from eval.workflows.chat import LMChat
from eval.workflows.run import TryResult, run_workflows, workflow_metrics
from eval.workflows.simulator import Simulator
from eval.workflows.tasks import read_tasks
from training.config.benchmarks import (
    BENCHMARKS,
    BenchmarkKind,
    can_be_tried_again,
    items_file,
    metrics_of,
    missing,
)
from training.config.eval_schema import BenchmarkConfig, SuiteConfig
from training.errors import DataError

_SHOWN_CHARACTERS = 400
"""Of a prompt, its end, in the report."""


def run_benchmarks(lm: LM, suite: SuiteConfig, root: Path) -> dict[str, TaskResult]:
    """Return what a suite's benchmarks come to, by name; metrics are named "<benchmark>/<metric>".

    Args:
        lm: the model.
        suite: which benchmarks, and how.
        root: the folder of prepared data.

    Raises:
        DataError: a benchmark is not prepared, or was changed since.
        SandboxUnavailable: a benchmark runs programs, and they cannot be isolated here.
    """
    faults = missing(root, suite.benchmarks)
    if faults:
        raise DataError("\n  -> ".join(faults))
    if any(BENCHMARKS[name].kind is BenchmarkKind.program for name in suite.benchmarks):
        check_sandbox()
    found: dict[str, TaskResult] = {}
    single = {name: how for name, how in suite.benchmarks.items() if task_file(name) is not None}
    for chat in (False, True):
        of_kind = {name: how for name, how in single.items() if how.chat == chat}
        if of_kind:
            found |= _run_single(lm, of_kind, root, chat=chat, seed=suite.seed)
    for name, how in suite.benchmarks.items():
        if BENCHMARKS[name].kind is BenchmarkKind.workflow:
            found[name] = _run_workflow(lm, name, how, root, seed=suite.seed)
    return {name: found[name] for name in suite.benchmarks}


def _run_single(
    lm: LM, benchmarks: Mapping[str, BenchmarkConfig], root: Path, *, chat: bool, seed: int
) -> dict[str, TaskResult]:
    """Run benchmarks of one question and one answer."""
    with tempfile.TemporaryDirectory() as cache:
        unset: Any = None  # lm_eval leaves the generators alone that the run draws from
        results: Any = simple_evaluate(
            model=lm,
            tasks=[_task(name, how, root, Path(cache)) for name, how in benchmarks.items()],
            samples={name: _places(name, how, _items(name, root)) for name, how in benchmarks.items()},
            apply_chat_template=chat,
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            random_seed=unset,
            numpy_random_seed=unset,
            torch_random_seed=unset,
            fewshot_random_seed=seed,
            confirm_run_unsafe_code=True,  # programs run in eval.sandbox alone
        )
    return {
        name: _result(name, results["results"][name], sorted(results["samples"][name], key=lambda s: s["doc_id"]))
        for name in benchmarks
    }


def _task(name: str, how: BenchmarkConfig, root: Path, cache: Path) -> dict[str, Any]:
    """Return a task of lm_eval with its items, and asked as the suite wants it."""
    path = task_file(name)
    assert path is not None
    task = load_yaml(path, resolve_func=True)
    files = {"test": str(items_file(root, name).resolve())}
    task |= {"dataset_kwargs": {"data_files": files, "cache_dir": str(cache)}}
    if how.compact:
        task["doc_to_text"] = compact_prompt
    if how.few_shot:
        task |= {"num_fewshot": how.few_shot, "fewshot_split": "test"}
    if "generation_kwargs" in task:
        options = dict(task["generation_kwargs"])
        if how.max_new_tokens is not None:
            options["max_gen_toks"] = how.max_new_tokens
        if how.temperature > 0:
            options |= {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p}
        task["generation_kwargs"] = options
    if can_be_tried_again(name):
        task["repeats"] = how.tries
        measured = [metric.partition("/")[2] for metric in metrics_of(name, how.tries)]
        task["metric_list"] = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in measured]
    return task


def _places(name: str, how: BenchmarkConfig, items: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the places of the items that a suite asks for, in the benchmark's order.

    Raises:
        DataError: there is none.
    """
    share = how.held_out_fraction
    places = [place for place, item in enumerate(items) if share is None or is_held_out_item(item, share)]
    if not places:
        raise DataError(
            f"benchmark {name}: held_out_fraction={share} keeps none of its items out of training\n"
            "  -> raise it here and in `python -m eval.workflows.trajectories --held-out-fraction`"
        )
    return places[: how.items]


def _items(name: str, root: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, items_file(root, name).read_text(encoding="utf-8").splitlines())


def _result(name: str, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> TaskResult:
    # What is no number is the standard error, which gates compute themselves; what stands behind a comma, a filter.
    numbers = {key.partition(",")[0]: value for key, value in metrics.items() if isinstance(value, int | float)}
    names = [key for key in numbers if any(key in sample for sample in samples)]
    return TaskResult(
        metrics={f"{name}/{key}": float(numbers[key]) for key in names} | {f"{name}/items": float(len(samples))},
        items=[_item(sample, names) for sample in samples],
    )


def _item(sample: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return what a report keeps of an item."""
    return {
        "id": str(sample["doc"].get("id", sample["doc_id"])),
        "key": str(sample["doc_hash"])[:16],
        "scores": {name: _score(name, sample[name]) for name in names if name in sample},
        "prompt": str(_first(sample["arguments"]))[-_SHOWN_CHARACTERS:],
        "answer": sample["filtered_resps"],
        "target": str(sample["target"])[:_SHOWN_CHARACTERS],
    }


def _first(arguments: Any) -> Any:
    """Return the first argument of the first request."""
    if isinstance(arguments, Mapping):
        return _first(next(iter(arguments.values()), ""))
    if isinstance(arguments, list | tuple):
        return _first(arguments[0]) if arguments else ""
    return arguments


def _score(name: str, value: Any) -> float | list[float]:
    """Return an item's part of a metric: a number, or what stands above and below the line of a ratio."""
    if name == "bits_per_byte":
        logprob, num_bytes = value
        return [-logprob / math.log(2), float(num_bytes)]
    return float(value)


def _run_workflow(lm: LM, name: str, how: BenchmarkConfig, root: Path, *, seed: int) -> TaskResult:
    known = read_tasks(root)
    tasks = [known[place] for place in _places(name, how, [{"id": task.id} for task in known])]
    answer_tokens = how.max_new_tokens or BENCHMARKS[name].answer_tokens
    assert answer_tokens is not None
    with Simulator(root) as simulator:
        tries = run_workflows(
            tasks,
            LMChat(lm, top_p=how.top_p),
            simulator,
            num_tries=how.tries,
            max_new_tokens=answer_tokens,
            temperature=how.temperature,
            seed=seed,
            compact=how.compact,
        )
    numbers = workflow_metrics(tries) | {
        "items": len(tasks),
        "calls": sum(t.num_calls for t in tries),
        "answers": sum(t.num_answers for t in tries),
    }
    return TaskResult(
        metrics={f"{name}/{key}": float(value) for key, value in numbers.items()},
        items=[_workflow_item([t for t in tries if t.task == task.id]) for task in tasks],
    )


def _workflow_item(tries: Sequence[TryResult]) -> dict[str, Any]:
    """Return what a report keeps of all tries at one task."""
    return {
        "id": tries[0].task,
        "key": hashlib.sha256(tries[0].task.encode()).hexdigest()[:16],
        "scores": scores_of_tries(sum(t.solved for t in tries), len(tries)),
        "tries": [asdict(t) for t in tries],
    }
