"""Events as lines of text: what the terminal, log files and launch.status say of them."""

from training.reporting.formatting import duration, num_bytes
from training.reporting.records import (
    CheckpointRecord,
    EvalRecord,
    EventRecord,
    GateRecord,
    IncidentRecord,
    StageRecord,
)

_VERDICTS = {"promote": "PROMOTED", "block": "BLOCKED", "ask": "ASKS A PERSON", "more_items": "WANTS MORE ITEMS"}
_HARMLESS = ("restart", "config_changed")
"""Incidents that somebody asked for, or that put another one right."""


def event_line(record: EventRecord) -> str:
    """Return one line; reasons of a gate and notes of an engine follow it, indented."""
    match record:
        case EvalRecord():
            bits = [] if record.bits_per_byte is None else [f"{record.bits_per_byte:.4f} bits per byte"]
            others = [f"{n} {v:.4g}" for n, v in record.metrics.items() if n != "bits_per_byte"]
            numbers = "  ".join([*bits, *others])
            return f"[{record.stage}] eval {record.suite}: {numbers}  ({duration(record.seconds)})"
        case GateRecord():
            reasons = "".join(f"\n    {reason}" for reason in record.reasons)
            verdict = _VERDICTS.get(record.decision, record.decision)
            return f"[{record.stage}] gate: {verdict}{reasons}"
        case CheckpointRecord():
            size = num_bytes(record.num_bytes)
            times = f"{duration(record.seconds)}, training stood still for {1000 * record.stall_seconds:.0f} ms"
            return f"[{record.stage}] checkpoint {record.directory}: {size} in {times}"
        case IncidentRecord():
            return f"[{record.stage}] INCIDENT {record.what} at step {record.step}: {record.message}"
        case StageRecord(stage="run"):
            return f"run {record.event} at step {record.step}"
        case StageRecord():
            notes = "".join(f"\n    {note}" for note in record.notes)
            return f"[{record.stage}] {record.event}: {record.layout}{notes}"


def event_style(record: EventRecord) -> str:
    """Return rich's style for an event on a terminal: what is wrong stands out, what is routine stays back."""
    match record:
        case GateRecord(decision="promote") | StageRecord(stage="run", event="done"):
            return "green"
        case GateRecord(decision="ask" | "more_items") | StageRecord(stage="run", event="stopped"):
            return "yellow"
        case IncidentRecord(what=what) if what in _HARMLESS:
            return "yellow"
        case GateRecord() | IncidentRecord() | StageRecord(stage="run", event="failed" | "blocked"):
            return "bold red"
        case CheckpointRecord():
            return "dim"
    return ""
