"""Whether a training stage's evaluation lets the next one start. Pure: results of items in, decision and sentences out.

A condition is met, missed, or unclear: the items say neither with the confidence that was asked. A gate that cannot
decide says so; it never promotes because it knows too little.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from eval.statistics import Bounds, Items, bounds, difference, items_to_decide
from training.config.gate_schema import GateAction, GateCondition, GateConfig


class Verdict(StrEnum):
    """What is known about a condition, or about a whole gate."""

    met = "met"
    missed = "missed"
    unclear = "unclear"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One condition against the items."""

    condition: str
    verdict: Verdict
    bounds: Bounds | None
    """Of the metric, or of the difference; None where nothing could be counted."""
    limit: float
    """What the bounds are compared with."""
    reason: str
    """A sentence with all numbers."""

    def numbers(self) -> dict[str, Any]:
        """Return it as JSON values; what is not finite is null."""
        known = {} if self.bounds is None else asdict(self.bounds)
        values = {"condition": self.condition, "verdict": str(self.verdict), "limit": self.limit, **known}
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What else is known of a condition; it decides nothing."""

    condition: str
    sentence: str
    numbers: dict[str, Any]
    """JSON values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateDecision:
    """Outcome of a gate."""

    decision: GateAction
    verdict: Verdict
    findings: tuple[Finding, ...]
    error_rate: float
    """Of each single bound; see `decide`."""
    notes: tuple[Note, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence per condition, and then what else is known of them, each thing once."""
        found = tuple(finding.reason for finding in self.findings) or ("the gate has no condition: nothing was asked",)
        return found + tuple(dict.fromkeys(note.sentence for note in self.notes))

    @property
    def numbers(self) -> tuple[dict[str, Any], ...]:
        """Everything the ledger keeps, one object per condition."""
        noted = {note.condition: note.numbers for note in self.notes}
        return tuple(
            finding.numbers() | {"error_rate": self.error_rate} | noted.get(finding.condition, {})
            for finding in self.findings
        )


def decide(
    gate: GateConfig,
    measured: Mapping[str, Items],
    baselines: Mapping[str, Mapping[str, Items]],
    *,
    look: int = 1,
) -> GateDecision:
    """Return what a gate makes of an evaluation.

    Where every condition is in truth missed (or one of those that must be met together is), the gate promotes with a
    probability of at most 1 - confidence over all its looks and alternatives; and likewise it finds a condition missed
    that is met. Both hold because the error rate is shared out among alternatives and looks (Bonferroni).

    Args:
        gate: the conditions; none promotes.
        measured: metric -> its items in this evaluation.
        baselines: name of an earlier evaluation -> metric -> its items.
        look: 1 for the first evaluation of a training stage, 2 for the next, with more items.
    """
    alternatives = gate.pass_if or ([list(gate.conditions)] if gate.conditions else [])
    error_rate = (1.0 - gate.confidence) / (max(1, len(alternatives)) * gate.max_looks)
    findings = {
        name: _finding(name, condition, measured, baselines, error_rate) for name, condition in gate.conditions.items()
    }
    verdict = _any(_all(findings[name].verdict for name in names) for names in alternatives)
    if not alternatives or verdict is Verdict.met:
        action = GateAction.promote
    elif verdict is Verdict.missed:
        action = gate.when_missed
        if action is GateAction.roll_back and any(
            finding.verdict is Verdict.missed and finding.bounds is None for finding in findings.values()
        ):
            action = GateAction.block  # what could not be counted costs nobody a training stage
    elif gate.when_unclear is GateAction.more_items and look >= gate.max_looks:
        action = GateAction.block
    else:
        action = gate.when_unclear
    return GateDecision(
        decision=action,
        verdict=verdict if alternatives else Verdict.met,
        findings=tuple(findings.values()),
        error_rate=error_rate,
    )


def _all(verdicts: Iterable[Verdict]) -> Verdict:
    found = set(verdicts)
    return next((v for v in (Verdict.missed, Verdict.unclear) if v in found), Verdict.met)


def _any(verdicts: Iterable[Verdict]) -> Verdict:
    found = set(verdicts)
    return next((v for v in (Verdict.met, Verdict.unclear) if v in found), Verdict.missed)


def _finding(
    name: str,
    condition: GateCondition,
    measured: Mapping[str, Items],
    baselines: Mapping[str, Mapping[str, Items]],
    error_rate: float,
) -> Finding:
    """Return what the items say about one condition."""
    items, metric = measured.get(condition.metric), condition.metric
    if items is None:
        return _without_numbers(name, f"{metric} was not measured")
    if not all(map(math.isfinite, items.numerators.values())):
        return _without_numbers(name, f"{metric} is {items.value}, which never promotes")
    if condition.compared_with is None:
        what, found = metric, bounds(items, error_rate=error_rate)
        at_most = condition.at_least is None
        limit = condition.at_most if at_most else condition.at_least
        assert limit is not None  # checked with the config
    else:
        baseline = baselines.get(condition.compared_with, {}).get(metric)
        if baseline is None:
            return _without_numbers(
                name, f"{metric} of {condition.compared_with} is not known: nothing to compare with"
            )
        if not all(map(math.isfinite, baseline.numerators.values())):
            return _without_numbers(name, f"{metric} of {condition.compared_with} is {baseline.value}: no number")
        what = f"{metric} less that of {condition.compared_with}"
        found = difference(items, baseline, error_rate=error_rate)
        at_most = not items.higher_is_better
        limit = condition.margin if at_most else 0.0 - condition.margin
    verdict = _verdict(found, limit, at_most=at_most)
    return Finding(
        condition=name,
        verdict=verdict,
        bounds=found,
        limit=limit,
        reason=_sentence(what, found, limit, verdict, at_most=at_most),
    )


def _verdict(found: Bounds, limit: float, *, at_most: bool) -> Verdict:
    if at_most:
        return Verdict.met if found.high <= limit else Verdict.missed if found.low > limit else Verdict.unclear
    return Verdict.met if found.low >= limit else Verdict.missed if found.high < limit else Verdict.unclear


def _sentence(what: str, found: Bounds, limit: float, verdict: Verdict, *, at_most: bool) -> str:
    shown, shown_limit = _distinct(found.value, limit)
    asked = f"{'at most' if at_most else 'at least'} {shown_limit}"
    known = f"{what} is {shown} ({found.low:.4g} to {found.high:.4g}, {found.num_items} items), {asked} was asked"
    if verdict is not Verdict.unclear:
        return f"{known}: {verdict}"
    needed = items_to_decide(found, limit)
    if needed is None:
        return f"{known}: cannot be decided"
    return f"{known}: cannot be decided, about {max(needed - found.num_items, 1)} more items would tell"


def _without_numbers(name: str, why: str) -> Finding:
    return Finding(condition=name, verdict=Verdict.missed, bounds=None, limit=math.nan, reason=f"{why}: missed")


def _distinct(a: float, b: float) -> tuple[str, str]:
    """Return both numbers with as few digits, from 4 on, as tell them apart."""
    digits = next((d for d in range(4, 17) if float(f"{a:.{d}g}") != float(f"{b:.{d}g}") or a == b), 17)
    return f"{a:.{digits}g}", f"{b:.{digits}g}"
