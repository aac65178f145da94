"""What somebody who is called at night must see first: what stopped the run, what is out of line, and where to look."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from training.reporting import formatting
from training.reporting.expert_health import expert_health
from training.reporting.goodput import Spent
from training.reporting.layer_health import layer_health
from training.reporting.records import ExpertsRecord
from training.reporting.summary import RunSummary

_GRAVE = {
    "silent_corruption",
    "corrupt_checkpoint",
    "hang",
    "failure",
    "non_finite",
    "loss_off_forecast",
    "rollback",
    "log_unwritable",
    "save_failed",
    "evaluation_failed",
}
"""Incidents after which somebody must look; the others tell what was done."""
_TOLD = {"restart", "config_changed"}
"""Incidents that need nobody."""
_ENDED = ("done",)
_LATEST_STEPS = 20
_SLOW = 0.8
"""Share of its own usual speed, or of the planned one, below which a run is called slow."""
_LOW_GOODPUT = 0.8
_YOUNG_SECONDS = 3600.0
"""Wall time before which start-up is most of any run."""


class Severity(IntEnum):
    """How urgent; its name is a class of the page's style."""

    bad = 0
    warning = 1
    note = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing to look at."""

    severity: Severity
    title: str
    details: list[str]
    section: str
    """Id of the section of the report that has more."""


def findings(summary: RunSummary) -> list[Finding]:
    """Return what to look at, the most urgent first; nothing if all is well."""
    found = [*_end(summary), *_incidents(summary), *_steps(summary), *_health(summary), *_time(summary)]
    return sorted(found, key=lambda finding: finding.severity)


def _end(summary: RunSummary) -> Iterator[Finding]:
    for gate in summary.blocking_gates:
        waits = gate.decision == "ask"
        title = (
            f"The gate after {gate.stage} waits for a person" if waits else f"Blocked by the gate after {gate.stage}"
        )
        yield Finding(severity=Severity.bad, title=title, details=gate.reasons, section="gates")
    if summary.state in ("blocked", "failed") and not summary.blocking_gates:
        last = summary.incidents[-1:]
        yield Finding(
            severity=Severity.bad,
            title="The run was blocked" if summary.state == "blocked" else "The run failed",
            details=[f"{incident.what} at step {incident.step}: {incident.message}" for incident in last],
            section="incidents",
        )
    if summary.state == "stopped":
        yield Finding(
            severity=Severity.note, title="The run was told to stop, and can go on", details=[], section="resume"
        )


def _incidents(summary: RunSummary) -> Iterator[Finding]:
    """Give one finding per kind of incident: how many, and the newest."""
    is_over = summary.state in _ENDED
    for what in dict.fromkeys(incident.what for incident in reversed(summary.incidents)):
        mine = [
            (incident, seconds)
            for incident, seconds in zip(summary.incidents, summary.incident_times_seconds, strict=True)
            if incident.what == what
        ]
        newest, seconds = mine[-1]
        severity = Severity.bad if what in _GRAVE else Severity.note if what in _TOLD else Severity.warning
        ago = formatting.duration(max(0.0, summary.last_time_seconds - seconds))
        times = f"{len(mine)} × " if len(mine) > 1 else ""
        yield Finding(
            severity=Severity.note if is_over else severity,
            title=f"{times}{what}",
            details=[f"step {newest.step}, {ago} before the last record: {newest.message}"],
            section="incidents",
        )


def _steps(summary: RunSummary) -> Iterator[Finding]:
    latest = summary.steps[-_LATEST_STEPS:]
    if not latest:
        return
    if not all(math.isfinite(step.loss) and math.isfinite(step.grad_norm) for step in latest):
        yield Finding(
            severity=Severity.bad,
            title="The latest losses or gradients are not finite",
            details=[f"step {step.step}: loss {step.loss}, gradient norm {step.grad_norm}" for step in latest[-1:]],
            section="loss-section",
        )
    if num_skipped := sum(step.skipped for step in latest):
        title = f"{num_skipped} of the last {len(latest)} steps changed nothing (skipped)"
        yield Finding(severity=Severity.warning, title=title, details=[], section="incidents")
    stage = [step for step in summary.steps if step.stage == latest[-1].stage]
    if len(stage) >= 5 * _LATEST_STEPS:
        usual = statistics.median(step.tokens_per_second for step in stage)
        now = statistics.median(step.tokens_per_second for step in stage[-_LATEST_STEPS:])
        if now < _SLOW * usual and summary.state not in _ENDED:
            yield Finding(
                severity=Severity.warning,
                title=f"Slower than it was: {formatting.count(now)} tokens/s, {formatting.count(usual)} is usual here",
                details=[],
                section="speed",
            )
    for planned in summary.stages:
        for comparison in planned.planned:
            if comparison.what == "tokens per second" and comparison.ratio < _SLOW:
                yield Finding(
                    severity=Severity.note,
                    title=f"{planned.name} runs at {formatting.percent(comparison.ratio)} of the planned speed",
                    details=[],
                    section="plan",
                )


def newest_loads(summary: RunSummary) -> ExpertsRecord | None:
    """Return the newest record of every expert's load."""
    return summary.experts[-1] if summary.experts else None


def _health(summary: RunSummary) -> Iterator[Finding]:
    for health, section in (
        (expert_health(summary.steps, newest_loads(summary)), "experts-section"),
        (layer_health(summary.layers), "gradients"),
    ):
        said, *advice = health.split("\n    -> ")
        if advice:
            yield Finding(severity=Severity.warning, title=said, details=advice, section=section)


def _time(summary: RunSummary) -> Iterator[Finding]:
    ledger = summary.goodput
    if ledger is None or ledger.wall_seconds < _YOUNG_SECONDS or ledger.share >= _LOW_GOODPUT:
        return
    lost = max((what for what in Spent if what is not Spent.compute), key=lambda what: ledger.spent[what])
    share = ledger.spent[lost] / ledger.wall_seconds
    yield Finding(
        severity=Severity.warning,
        title=f"Goodput is {formatting.percent(ledger.share)}",
        details=[f"most is lost to {lost.value}: {formatting.percent(share)} of the wall time"],
        section="time-section",
    )
