"""A run's training stages and gates as plain facts, from its records, its ledger (stages.json) and its plan."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.plain_files import typed
from training.reporting.planned import Comparison, PlannedStage, compare
from training.reporting.records import EvalRecord, StageRecord, StepRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSummary:
    """One training stage; numbers are None where it has not come so far."""

    name: str
    status: str
    layout: str
    planned: list[Comparison]
    """What was planned, beside what was measured; empty where there was no plan."""
    no_comparison: str
    """Why a plan could not be compared, or empty."""
    num_steps: int
    tokens: int
    first_loss: float | None
    last_loss: float | None
    median_tokens_per_second: float | None
    bits_per_byte: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GateNumbers:
    """One condition of a gate as the ledger keeps it (eval.gates.Finding); None where nothing could be counted."""

    condition: str
    verdict: str
    limit: float | None
    error_rate: float
    """Of each of the two bounds."""
    value: float | None = None
    """The metric, or its difference from an earlier evaluation."""
    low: float | None = None
    high: float | None = None
    num_items: int | None = None
    contaminated_items: int | None = None
    """Of them, those that stand in the training data (eval/evidence.py)."""
    mean_overlap: float | None = None
    """Share of an item's n-grams that stand there, mean over all items."""
    value_without_contaminated: float | None = None


def stages_of(
    events: list[StageRecord],
    steps: list[StepRecord],
    evals: list[EvalRecord],
    ledger: dict[str, Any],
    plan: Mapping[str, PlannedStage],
) -> list[StageSummary]:
    """Return the training stages, those that are still to come too.

    Args:
        events: of training stages.
        steps: that count.
        evals: in the order of steps.
        ledger: stages.json.
        plan: plan.json.
    """
    statuses = _statuses(ledger)
    steps_of: dict[str, list[StepRecord]] = {}
    for step in steps:
        steps_of.setdefault(step.stage, []).append(step)
    names = dict.fromkeys([*statuses, *(event.stage for event in events), *steps_of])
    summaries: list[StageSummary] = []
    tokens_before = 0
    for name in names:
        mine = steps_of.get(name, [])
        my_events = [event for event in events if event.stage == name]
        ended = bool(my_events) and my_events[-1].event == "end"
        derived_status = "done" if ended else "running" if my_events or mine else "pending"
        tokens = mine[-1].tokens if mine else tokens_before
        planned, why_not = compare(plan[name], mine, my_events) if name in plan else ([], "")
        summaries.append(
            StageSummary(
                name=name,
                status=statuses.get(name) or derived_status,
                layout=my_events[-1].layout if my_events else "",
                planned=planned,
                no_comparison=why_not,
                num_steps=len(mine),
                tokens=tokens - tokens_before,
                first_loss=mine[0].loss if mine else None,
                last_loss=mine[-1].loss if mine else None,
                median_tokens_per_second=statistics.median(s.tokens_per_second for s in mine) if mine else None,
                bits_per_byte=next((e.bits_per_byte for e in reversed(evals) if e.stage == name), None),
            )
        )
        tokens_before = tokens
    return summaries


def _statuses(ledger: dict[str, Any]) -> dict[str, str | None]:
    """Return the status of each training stage that the ledger names."""
    entries = ledger.get("stages")
    statuses: dict[str, str | None] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(name := entry.get("name"), str):
            statuses[name] = status if isinstance(status := entry.get("status"), str) else None
    return statuses


def gate_numbers(ledger: dict[str, Any], notes: list[str]) -> dict[str, list[GateNumbers]]:
    """Return what the ledger says of each gate that was asked."""
    entries = ledger.get("stages")
    found: dict[str, list[GateNumbers]] = {}
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case {"name": str() as name, "gate": {"numbers": list() as numbers}}:
                try:
                    found[name] = [typed(GateNumbers, number) for number in numbers]
                except ValueError as error:
                    notes.append(f"the numbers of the gate after {name} are damaged and were left out: {error}")
    return found
