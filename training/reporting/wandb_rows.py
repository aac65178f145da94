"""What Weights & Biases gets of each record: a pure function over the records of a run, from its first one on.

Our axes are `step` and `tokens`. Charts over them need each step once, so what is done again after a crash or a
rollback stands under `redone/…`, and `train/…` only ever grows; metrics.jsonl and the report keep the later one.
wandb's own `_step` is the number of the record's line in metrics.jsonl (wandb_feed), so every attempt of a run
writes rows that no other attempt does.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from training.reporting.records import (
    CheckpointRecord,
    EvalRecord,
    ExpertsRecord,
    GateRecord,
    IncidentRecord,
    LayersRecord,
    MemoryRecord,
    ProfileRecord,
    Record,
    StageRecord,
    StartRecord,
    StepRecord,
    TimeRecord,
)

NAMESPACES = (
    "train",
    "preference",
    "experts",
    "layers",
    "memory",
    "time",
    "counts",
    "eval",
    "gate",
    "checkpoint",
    "incident",
    "stage",
    "profile",
    "redone",
)
"""What names begin with; all of them are drawn over `step`."""

_BY_STEP = StepRecord | LayersRecord | ExpertsRecord | MemoryRecord
"""What belongs to one step, so that a step done again has it again."""
_WAKE_UP = frozenset({"silent_corruption", "corrupt_checkpoint", "save_failed", "hang", "failure"})
"""Incidents in which work is lost, or will be."""
_LOOK = frozenset({"rollback", "loss_off_forecast", "slow_rank", "evaluation_failed", "log_unwritable"})
"""Incidents that somebody should look at within the day."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """What wandb passes on by mail or Slack."""

    title: str
    text: str
    level: Literal["WARN", "ERROR"]


class WandbRows:
    """Makes rows of records, which must be all of a run's, in the order of metrics.jsonl."""

    def __init__(self) -> None:
        self._highest: dict[str, int] = {}
        """Kind of record -> highest step it was of."""
        self._counts: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()

    def row(self, record: Record) -> dict[str, Any]:
        """Return what the record logs: name -> number or text; what the record does not know is left out."""
        numbers = self._numbers(record)
        if isinstance(record, _BY_STEP):
            is_again = record.step <= self._highest.get(record.kind, -1)
            self._highest[record.kind] = max(record.step, self._highest.get(record.kind, -1))
            if is_again:
                if isinstance(record, StepRecord):
                    numbers = numbers | {"tokens": record.tokens} | self._count("redone_steps")
                numbers = {name if name.startswith("counts/") else f"redone/{name}": n for name, n in numbers.items()}
            elif isinstance(record, StepRecord):
                numbers = {"tokens": record.tokens, **numbers}
        return {"step": record.step} | {name: value for name, value in numbers.items() if value is not None}

    def _numbers(self, record: Record) -> dict[str, Any]:
        match record:
            case StepRecord():
                fields = _fields(record, without=("tokens", "experts", "preference"))
                return {
                    **_under("train", fields | {"skipped": int(record.skipped)}),
                    **_under("preference", record.preference or {}),
                    **_under("experts", record.experts or {}),
                    **(self._count("skipped_steps") if record.skipped else {}),
                }
            case EvalRecord():
                texts = "\n\n".join(f"{sample['prompt']}|{sample['text']}" for sample in record.samples)
                fields = _fields(record, without=("metrics", "samples", "in_between"))
                in_between = {"in_between": int(record.in_between), "samples": texts}
                return _under(f"eval/{record.suite}", record.metrics | fields | in_between)
            case GateRecord():
                promoted = record.decision == "promote"
                fields = _fields(record) | {"reasons": "\n".join(record.reasons), "promoted": int(promoted)}
                return _under("gate", fields) | ({} if promoted else self._count("gates_not_passed"))
            case IncidentRecord():
                return _under("incident", _fields(record)) | self._count("incidents", f"incidents/{record.what}")
            case CheckpointRecord():
                return _under("checkpoint", _fields(record)) | self._count("checkpoints")
            case StageRecord():
                return _under("stage", _fields(record) | {"notes": "\n".join(record.notes)})
            case StartRecord():  # the rest of it is in the config
                self._counts["starts"] = record.attempt
                return self._count("starts") | {"counts/ranks": record.world_size}
            case TimeRecord():
                self._seconds.update(record.spent)
                return _under("time", {f"{name}_seconds": self._seconds[name] for name in record.spent})
            case LayersRecord():
                return _layers(record)
            case ExpertsRecord():
                return _loads(record)
            case MemoryRecord():
                held = {f"held_{what}_bytes": number for what, number in record.held_bytes.items()}
                return _under("memory", _fields(record, without=("held_bytes",)) | held)
            case ProfileRecord():
                costliest = [f"{one['name']}: {one['seconds']:.6f} s, {one['calls']} calls" for one in record.operators]
                return _under("profile", _fields(record) | {"operators": "\n".join(costliest)})

    def _count(self, *names: str) -> dict[str, int]:
        """Count one more of each, and return how many there are."""
        self._counts.update(names)
        return {f"counts/{name}": self._counts[name] for name in names}


def config_of(record: Record, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record changes in the run's config in wandb: facts of the newest start, layouts as they begin.

    Args:
        record: of the run.
        known: what the records before it made of these keys.
    """
    match record:
        case StartRecord():
            facts = _fields(record, without=("hosts", "launched_seconds"))
            return {"start": facts | {"is_fresh": record.attempt == 0, "rank_map": record.hosts}}
        case IncidentRecord(what="restart"):
            return {"start": {**known.get("start", {}), "resumed": record.message}}
        case StageRecord(event="begin"):
            begun = {"layout": record.layout, "notes": record.notes}
            return {"layouts": {**known.get("layouts", {}), record.stage: begun}}
    return {}


def alert_of(record: Record) -> Alert | None:
    """Return what somebody should be told of a record: incidents worth it, gates that stop the run; else None."""
    match record:
        case IncidentRecord(what=what) if what in _WAKE_UP | _LOOK:
            level = "ERROR" if what in _WAKE_UP else "WARN"
            return Alert(title=what, text=f"step {record.step}, {record.stage}: {record.message}", level=level)
        case GateRecord(decision="block" | "roll_back" | "ask" as decision):
            text = f"step {record.step}, after {record.stage}: {'; '.join(record.reasons)}"
            return Alert(title=f"gate: {decision}", text=text, level="WARN" if decision == "ask" else "ERROR")
        case StageRecord(stage="run", event="failed"):
            return Alert(title="failed", text=f"step {record.step}: {'; '.join(record.notes)}", level="ERROR")
    return None


def _fields(record: Record, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name != "step" and name not in without}


def _under(namespace: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{namespace}/{name}": value for name, value in values.items()}


def _layers(record: LayersRecord) -> dict[str, float]:
    row: dict[str, float] = {}
    lists = (record.names, record.weight_norms, record.grad_norms, record.update_norms)
    for name, weight, gradient, update in zip(*lists, strict=True):
        row |= {f"layers/{name}/weight_norm": weight, f"layers/{name}/grad_norm": gradient}
        if weight:
            row[f"layers/{name}/update_ratio"] = update / weight
    return row


def _loads(record: ExpertsRecord) -> dict[str, float]:
    """Return the largest and smallest load of each block with experts, over the mean of its experts."""
    row: dict[str, float] = {}
    for number, loads in enumerate(record.loads):
        mean = sum(loads) / len(loads) if loads else 0
        if mean:
            row |= {
                f"experts/block_{number}/largest_load": max(loads) / mean,
                f"experts/block_{number}/smallest_load": min(loads) / mean,
                f"experts/block_{number}/load_deviation": math.sqrt(
                    sum((n / mean - 1) ** 2 for n in loads) / len(loads)
                ),
            }
    return row
