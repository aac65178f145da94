"""A run directory as plain facts: what the report shows, whichever way it is shown.

metrics.jsonl is the truth; the ledger (stages.json), the overrides and the environment add what it does not hold,
and each of them may be missing.
"""

import shlex
import statistics
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from training.errors import ConfigError
from training.plain_files import read_json, read_yaml, typed
from training.reporting.metrics import FILE_NAME, Metrics, latest_steps, read_metrics
from training.reporting.planned import Comparison, PlannedStage, compare, read_plan
from training.reporting.records import (
    CheckpointRecord,
    EvalRecord,
    GateRecord,
    IncidentRecord,
    StageRecord,
    StepRecord,
)

T = TypeVar("T")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """A run so far. Of what was done more than once, after a crash or a block, only the latest is here."""

    run_id: str
    state: str
    """running, done, blocked or failed."""
    first_time_seconds: float
    last_time_seconds: float
    training_seconds: float
    """Time inside optimizer steps that count."""
    tokens: int
    num_attempts: int
    steps: list[StepRecord]
    evals: list[EvalRecord]
    """In the order of steps."""
    gates: list[GateRecord]
    gate_numbers: dict[str, list[GateNumbers]]
    """Training stage -> what its gate went by, condition by condition."""
    checkpoints: list[CheckpointRecord]
    incidents: list[IncidentRecord]
    stages: list[StageSummary]
    resume_command: str
    environment: dict[str, str]
    notes: list[str]
    """What a reader should know about the files themselves."""

    @property
    def blocking_gates(self) -> list[GateRecord]:
        """Gates that stopped the run; none while it goes on again after a block."""
        return (
            [gate for gate in self.gates if gate.decision in ("block", "ask", "roll_back")]
            if self.state == "blocked"
            else []
        )


def read_run(run_directory: Path) -> RunSummary:
    """Return the facts of a run directory, also of one that is being written.

    Raises:
        ConfigError: the directory holds no metrics.jsonl.
        StorageError: a file cannot be read.
    """
    if not (run_directory / FILE_NAME).is_file():
        raise ConfigError(
            "run directory",
            run_directory,
            f"there is no {FILE_NAME} in it",
            "give the directory of a run that has started, for example runs/<run id>",
        )
    metrics = read_metrics(run_directory / FILE_NAME)
    notes: list[str] = []
    if metrics.num_torn_lines:
        notes.append(f"{metrics.num_torn_lines} unreadable line(s) of {FILE_NAME} were left out (torn by a crash)")
    ledger = _read_json(run_directory / "stages.json", notes)
    records = metrics.records
    steps = latest_steps(records)
    evals = _latest((r, (r.stage, r.suite, r.step)) for r in records if isinstance(r, EvalRecord))
    evals.sort(key=lambda record: record.step)  # after a crash earlier steps are evaluated later
    run_id = run_directory.resolve().name
    return RunSummary(
        run_id=run_id,
        state=state if isinstance(state := ledger.get("state"), str) and state else _state(metrics),
        first_time_seconds=min(metrics.times_seconds, default=0.0),
        last_time_seconds=max(metrics.times_seconds, default=0.0),
        training_seconds=sum(step.seconds for step in steps),
        tokens=steps[-1].tokens if steps else 0,
        num_attempts=max((record.attempt for record in records), default=0) + 1,
        steps=steps,
        evals=evals,
        gates=_latest((r, r.stage) for r in records if isinstance(r, GateRecord)),
        gate_numbers=_gate_numbers(ledger, notes),
        checkpoints=_latest((r, r.directory) for r in records if isinstance(r, CheckpointRecord)),
        incidents=[record for record in records if isinstance(record, IncidentRecord)],
        stages=_stages(metrics, steps, evals, ledger, read_plan(run_directory, notes)),
        resume_command=resume_command(run_directory, notes),
        environment=_flat(_read_json(run_directory / "environment.json", notes)),
        notes=notes,
    )


def _stages(
    metrics: Metrics,
    steps: list[StepRecord],
    evals: list[EvalRecord],
    ledger: dict[str, Any],
    plan: dict[str, PlannedStage],
) -> list[StageSummary]:
    events = [r for r in metrics.records if isinstance(r, StageRecord) and r.stage != "run"]
    statuses = _statuses(ledger)
    names = dict.fromkeys([*statuses, *(event.stage for event in events), *(step.stage for step in steps)])
    summaries: list[StageSummary] = []
    tokens_before = 0
    for name in names:
        mine = [step for step in steps if step.stage == name]
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


def _gate_numbers(ledger: dict[str, Any], notes: list[str]) -> dict[str, list[GateNumbers]]:
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


def _state(metrics: Metrics) -> str:
    """Return the state that the records tell, for a run without a ledger."""
    events = [record for record in metrics.records if isinstance(record, StageRecord | GateRecord)]
    match events[-1:]:
        case [StageRecord(stage="run", event=event)]:
            return event
        case [GateRecord(decision="block")]:
            return "blocked"
    return "running"


def _latest(pairs: Iterable[tuple[T, Hashable]]) -> list[T]:
    """Return the last item of each key, in the order of those last items."""
    latest: dict[Hashable, T] = {}
    for item, key in pairs:
        latest.pop(key, None)
        latest[key] = item
    return list(latest.values())


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} is damaged and was left out: {error}")
        return {}
    return values


def resume_command(run_directory: Path, notes: list[str] | None = None) -> str:
    """Return the command that goes on with a run; what is wrong with overrides.yaml is added to the notes."""
    overrides_path, run_id = run_directory / "overrides.yaml", run_directory.resolve().name
    notes = [] if notes is None else notes
    try:
        overrides = read_yaml(overrides_path)
        if not isinstance(overrides, list):
            raise ValueError("it holds no list")
    except FileNotFoundError:
        overrides = []
    except (OSError, ValueError) as error:
        notes.append(f"{overrides_path.name} is damaged and was left out: {error}")
        overrides = []
    kept = [o for o in map(str, overrides) if o.lstrip("+").split("=")[0] not in ("run.id", "resume")]
    return shlex.join(["python", "-m", "launch.submit", *kept, f"run.id={run_id}", "resume=auto"])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
