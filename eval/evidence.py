"""What gates go by: metrics item by item, read back from reports: every decision can be made again from files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.gates import GateDecision, Note, decide
from eval.harness import LARGEST_REPORT_BYTES
from eval.statistics import Items
from eval.tasks.assistant_turns import ASSISTANT_TURNS
from eval.tasks.base import item_key
from eval.tasks.held_out import HELD_OUT
from eval.tasks.multiple_choice import MULTIPLE_CHOICE
from training.config.benchmarks import BENCHMARKS
from training.config.gate_schema import GateConfig, is_better_when_lower
from training.errors import DataError
from training.plain_files import read_json

_TASKS = (HELD_OUT, MULTIPLE_CHOICE, ASSISTANT_TURNS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What a report says item by item."""

    items: dict[str, Items]
    """Metric -> items."""
    overlaps: dict[str, dict[str, float]]
    """Task or benchmark -> item -> its overlap with the training data; of those that were looked for in it."""


def read_evidence(path: Path) -> Evidence:
    """Return what a report that `harness.write_report` wrote says; of tasks in their present version only.

    Raises:
        DataError: there is no such report, or it is none.
    """
    try:
        tasks = read_json(path, largest_bytes=LARGEST_REPORT_BYTES)["tasks"]
        present = {task.name: task.version for task in _TASKS} | {name: b.version for name, b in BENCHMARKS.items()}
        items = {name: tasks[name]["items"] for name in present if name in tasks}
        items = {name: found for name, found in items.items() if tasks[name]["version"] == present[name]}
        metrics = {
            metric: items_of(items[task.name])
            for task in _TASKS
            for metric, items_of in task.metrics.items()
            if task.name in items
        }
        for name in BENCHMARKS:
            if name in items:
                metrics |= _benchmark_items(name, items[name])
        overlaps = {
            name: {item_key(item): float(item["overlap"]) for item in found}
            for name, found in items.items()
            if all("overlap" in item for item in found)
        }
        return Evidence(items=metrics, overlaps=overlaps)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no report of an evaluation that a gate can go by ({type(error).__name__}: {error})\n"
            "  -> restore it from a copy; or let the gate ask for nothing (gate: null) and start again with resume=auto"
        ) from error


def read_items(path: Path) -> dict[str, Items]:
    """Return metric -> items of a report; see `read_evidence`.

    Raises:
        DataError: there is no such report, or it is none.
    """
    return read_evidence(path).items


def _benchmark_items(name: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Items]:
    """Return "<benchmark>/<metric>" -> items, of the metrics that every item has."""
    scored = [set(item["scores"]) for item in items]
    found = {}
    for metric in sorted(set.intersection(*scored)) if scored else []:
        pairs = {}
        for item in items:
            score = item["scores"][metric]
            pairs[item_key(item)] = score if isinstance(score, list) else [score, 1.0]
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
    evidence = read_evidence(report)
    notes = [_contamination(name, condition.metric, evidence) for name, condition in gate.conditions.items()]
    return replace(decide(gate, evidence.items, known, look=look), notes=tuple(note for note in notes if note))


def _contamination(condition: str, metric: str, evidence: Evidence) -> Note | None:
    """Return how many of a metric's items stand in the training data, and what it is without them."""
    if (items := evidence.items.get(metric)) is None:
        return None
    task = next((task.name for task in _TASKS if metric in task.metrics), metric.partition("/")[0])
    short = metric.rpartition("/")[2]
    if (overlaps := evidence.overlaps.get(task)) is None:
        sentence = f"whether items of {task} stand in the training data is not known: the report does not say"
        return Note(condition=condition, sentence=sentence, numbers={})
    num_items = len(items.numerators)
    clean = [item for item in items.numerators if overlaps[item] == 0.0]
    contaminated = num_items - len(clean)
    overlap = math.fsum(overlaps[item] for item in items.numerators) / num_items
    value = items.of(clean).value if clean else math.nan
    numbers = {
        "contaminated_items": contaminated,
        "mean_overlap": overlap,
        "value_without_contaminated": value if math.isfinite(value) else None,
    }
    if not contaminated:
        sentence = f"none of the {num_items} items of {task} stands in the training data"
    else:
        rest = f"without them {short} is {value:.4g}" if clean else f"without them nothing is left of {short}"
        found = f"{contaminated} of {num_items} items of {task} stand in the training data"
        sentence = f"{found}, on average {overlap:.3g} of all items' n-grams; {rest}"
    return Note(condition=condition, sentence=sentence, numbers=numbers)
