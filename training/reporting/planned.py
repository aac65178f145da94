"""plan.json of a run directory: what launch.submit expected of the run before it started.

The planner writes it (training/planner/run_plan.py); the report puts it beside what was measured.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.durable_files import write_durably
from training.plain_files import read_json, typed
from training.reporting.records import StageRecord, StepRecord

FILE_NAME = "plan.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStage:
    """What was expected of one training stage."""

    layout: str
    """As StageRecord has it."""
    step_seconds: float
    tokens_per_second: float
    """Of all ranks together."""
    mfu: float
    """Model FLOPs utilisation, by the convention of StepRecord."""
    memory_bytes: float
    """Of rank 0 at the highest, without what driver and libraries take."""
    num_ramp_steps: int = 0
    """Steps at the beginning whose batches are smaller, which the plan is not of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One number, planned and measured."""

    what: str
    unit: str
    """seconds, tokens, percent or bytes."""
    planned: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over planned."""
        return self.measured / self.planned


def write_plan(run_directory: Path, stages: dict[str, PlannedStage]) -> None:
    """Write plan.json, whole or not at all."""
    content: dict[str, Any] = {"version": 1, "stages": {name: asdict(stage) for name, stage in stages.items()}}
    write_durably(run_directory / FILE_NAME, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_plan(run_directory: Path, notes: list[str]) -> dict[str, PlannedStage]:
    """Return what was planned of each training stage; nothing where there is no plan, or with a note a damaged one."""
    try:
        match read_json(run_directory / FILE_NAME):
            case {"version": 1, "stages": dict() as stages}:
                return {str(name): typed(PlannedStage, stage) for name, stage in stages.items()}
        raise ValueError("it is of another version, or no plan")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{FILE_NAME} is damaged and was left out: {error}")
        return {}


def settled(steps: Sequence[StepRecord]) -> list[StepRecord]:
    """Return steps without the first of each attempt, in which libraries warm up."""
    return [step for step, before in zip(steps[1:], steps, strict=False) if step.attempt == before.attempt]


def compare(
    planned: PlannedStage, steps: Sequence[StepRecord], events: Sequence[StageRecord]
) -> tuple[list[Comparison], str]:
    """Return planned beside measured numbers of a training stage, and what stands against comparing them, or ""."""
    layouts = {event.layout for event in events if event.layout}
    if layouts - {planned.layout}:
        return [], f"planned for another layout ({planned.layout})"
    measured = settled(steps[planned.num_ramp_steps :])
    if not measured:
        return [], "too few steps to measure"
    comparisons = [
        Comparison(
            what="step",
            unit="seconds",
            planned=planned.step_seconds,
            measured=statistics.median(step.seconds for step in measured),
        ),
        Comparison(
            what="tokens per second",
            unit="tokens",
            planned=planned.tokens_per_second,
            measured=statistics.median(step.tokens_per_second for step in measured),
        ),
        Comparison(
            what="MFU",
            unit="percent",
            planned=planned.mfu,
            measured=statistics.median(step.mfu for step in measured),
        ),
    ]
    peaks = [event.peak_memory_bytes for event in events if event.peak_memory_bytes is not None]
    if peaks:
        comparisons.append(
            Comparison(what="memory of rank 0", unit="bytes", planned=planned.memory_bytes, measured=max(peaks))
        )
    return comparisons, ""
