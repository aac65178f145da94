"""A run directory as plain facts: what the report shows, whichever way it is shown.

metrics.jsonl is the truth; the ledger (stages.json), the overrides and the environment add what it does not hold,
and each of them may be missing.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from training.errors import ConfigError
from training.plain_files import read_json
from training.reporting.goodput import Goodput, goodput
from training.reporting.metrics import FILE_NAME, Metrics, latest_steps, read_metrics
from training.reporting.planned import PlannedStage, read_plan
from training.reporting.records import (
    CheckpointRecord,
    EvalRecord,
    ExpertsRecord,
    GateRecord,
    IncidentRecord,
    LayersRecord,
    MemoryRecord,
    ProfileRecord,
    StageRecord,
    StartRecord,
    StepRecord,
)
from training.reporting.run_config import fresh_command, read_config, resume_command
from training.reporting.stage_summaries import GateNumbers, StageSummary, gate_numbers, stages_of
from training.reporting.starts import end_times

T = TypeVar("T")
S = TypeVar("S", LayersRecord, ExpertsRecord, MemoryRecord)


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
    incident_times_seconds: list[float]
    """When each was written, in Unix seconds."""
    stages: list[StageSummary]
    events: list[StageRecord]
    """Beginnings and ends of training stages and of the run."""
    starts: list[StartRecord]
    layers: list[LayersRecord]
    experts: list[ExpertsRecord]
    memory: list[MemoryRecord]
    """These three in the order of steps."""
    profiles: list[ProfileRecord]
    goodput: Goodput | None
    """Where the time went; None of a run of an earlier version."""
    plan: Mapping[str, PlannedStage]
    """plan.json: training stage -> what was expected of it."""
    config: dict[str, str]
    """config.yaml, flat: "model.num_layers" -> "4"; empty if it is missing."""
    resume_command: str
    fresh_command: str
    """Starts another run like this one; the code must be at the same commit."""
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
    return summarize(run_directory, read_metrics(metrics_path(run_directory)))


def metrics_path(run_directory: Path) -> Path:
    """Return the path of a run's metrics.jsonl.

    Raises:
        ConfigError: the directory holds none.
    """
    if not (run_directory / FILE_NAME).is_file():
        raise ConfigError(
            "run directory",
            run_directory,
            f"there is no {FILE_NAME} in it",
            "give the directory of a run that has started, for example runs/<run id>",
        )
    return run_directory / FILE_NAME


def summarize(run_directory: Path, metrics: Metrics) -> RunSummary:
    """Return the facts of a run directory whose metrics.jsonl has been read already.

    Raises:
        StorageError: a file cannot be read.
    """
    notes: list[str] = []
    if metrics.num_torn_lines:
        notes.append(f"{metrics.num_torn_lines} unreadable line(s) of {FILE_NAME} were left out (torn by a crash)")
    ledger = _read_json(run_directory / "stages.json", notes)
    records = metrics.records
    steps = latest_steps(records)
    evals = _latest((r, (r.stage, r.suite, r.step)) for r in records if isinstance(r, EvalRecord))
    evals.sort(key=lambda record: record.step)  # after a crash earlier steps are evaluated later
    events = [record for record in records if isinstance(record, StageRecord)]
    plan = read_plan(run_directory, notes)
    timed = zip(records, metrics.times_seconds, strict=True)
    incidents = [(record, seconds) for record, seconds in timed if isinstance(record, IncidentRecord)]
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
        gate_numbers=gate_numbers(ledger, notes),
        checkpoints=_latest((r, r.directory) for r in records if isinstance(r, CheckpointRecord)),
        incidents=[record for record, _ in incidents],
        incident_times_seconds=[seconds for _, seconds in incidents],
        stages=stages_of([event for event in events if event.stage != "run"], steps, evals, ledger, plan),
        events=events,
        starts=[record for record in records if isinstance(record, StartRecord)],
        layers=_by_step(record for record in records if isinstance(record, LayersRecord)),
        experts=_by_step(record for record in records if isinstance(record, ExpertsRecord)),
        memory=_by_step(record for record in records if isinstance(record, MemoryRecord)),
        profiles=[record for record in records if isinstance(record, ProfileRecord)],
        goodput=goodput(metrics, end_times(run_directory)),
        plan=plan,
        config=flat(read_config(run_directory, notes)),
        resume_command=resume_command(run_directory, notes),
        fresh_command=fresh_command(run_directory, notes),
        environment=flat(_read_json(run_directory / "environment.json", notes)),
        notes=list(dict.fromkeys(notes)),
    )


def _by_step(records: Iterable[S]) -> list[S]:
    """Return the records in the order of steps; of steps done again only the latest."""
    return sorted(_latest((record, record.step) for record in records), key=lambda record: record.step)


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


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values under names with dots between them, as text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found
