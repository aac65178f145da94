"""What gates go by: metrics item by item, read back from reports: every decision can be made again from files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.gates import GateDecision, decide
from eval.harness import LARGEST_REPORT_BYTES
from eval.statistics import Items
from eval.tasks.held_out import HELD_OUT
from eval.tasks.multiple_choice import MULTIPLE_CHOICE
from training.config.benchmarks import BENCHMARKS
from training.config.gate_schema import GateConfig, is_better_when_lower
from training.errors import DataError
from training.plain_files import read_json

_TASKS = (HELD_OUT, MULTIPLE_CHOICE)


def read_items(path: Path) -> dict[str, Items]:
    """Return metric -> items of a report that `harness.write_report` wrote; of tasks in their present version only.

    Raises:
        DataError: there is no such report, or it is none.
    """
    try:
        tasks = read_json(path, largest_bytes=LARGEST_REPORT_BYTES)["tasks"]
        found = {
            metric: items_of(tasks[task.name]["items"])
            for task in _TASKS
            for metric, items_of in task.metrics.items()
            if task.name in tasks and tasks[task.name]["version"] == task.version
        }
        for name, benchmark in BENCHMARKS.items():
            if name in tasks and tasks[name]["version"] == benchmark.version:
                found |= _benchmark_items(name, tasks[name]["items"])
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no report of an evaluation that a gate can go by ({type(error).__name__}: {error})\n"
            "  -> restore it from a copy; or let the gate ask for nothing (gate: null) and start again with resume=auto"
        ) from error


def _benchmark_items(name: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Items]:
    """Return "<benchmark>/<metric>" -> items, of the metrics that every item has."""
    scored = [set(item["scores"]) for item in items]
    found = {}
    for metric in sorted(set.intersection(*scored)) if scored else []:
        pairs = {}
        for item in items:
            score = item["scores"][metric]
            pairs[f"{item['id']} {item['key']}"] = score if isinstance(score, list) else [score, 1.0]
        found[f"{name}/{metric}"] = Items(
            numerators={key: float(above) for key, (above, _) in pairs.items()},
            denominators={key: float(below) for key, (_, below) in pairs.items()},
            higher_is_better=not is_better_when_lower(metric),
        )
    return found


def decide_from_reports(gate: GateConfig, report: Path, baselines: Mapping[str, Path], *, look: int) -> GateDecision:
    """Return what a gate makes of a report, compared with earlier ones.

    Args:
        gate: its conditions.
        report: of the training stage's evaluation.
        baselines: `compared_with` -> report; what is not there is not known.
        look: number of that evaluation; see `gates.decide`.

    Raises:
        DataError: a report cannot be read.
    """
    known = {name: read_items(path) for name, path in baselines.items()}
    return decide(gate, read_items(report), known, look=look)
