"""Bytes of one rank of each pipeline stage, and whether they fit. No torch.

Of what our own engines run it is the plan that they follow themselves (training/models/memory.py, checked against live
engines); of other programs, and of layouts that no engine of ours runs yet, `planner/program_memory.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from training.planner.constants import CONSTANTS, Constants
from training.planner.job import Job
from training.planner.own_memory import own_memory, runs_in_our_engines
from training.planner.pipeline_time import Chunk, chunks_of
from training.planner.program_memory import program_memory
from training.planner.stage_memory import StageMemory

_GIB = 2**30
TIGHT_SHARE = 0.92
"""Share of a device's memory above which a plan that fits is called tight: another step's fragments may not fit."""


class Fit(StrEnum):
    """Whether a plan fits a device."""

    fits = "fits"
    tight = "tight"
    does_not_fit = "does not fit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a job fits its device, by how much, and why."""

    fit: Fit
    pipeline_stage: int
    """The fullest one."""
    needed_bytes: float
    """Of a rank of that pipeline stage."""
    memory_bytes: float
    """Of the device."""
    reason: str
    """One sentence: the amounts, and the largest parts."""


def memory(job: Job, constants: Constants = CONSTANTS, places: Sequence[int] | None = None) -> tuple[StageMemory, ...]:
    """Return the memory of a rank of each pipeline stage.

    Args:
        job: the run.
        constants: of the planner.
        places: pipeline stages to look at; null is all.
    """
    if runs_in_our_engines(job):
        return own_memory(job, constants.software[job.software], places)
    return program_memory(job, constants, places)


def _candidates(job: Job, constants: Constants) -> list[int]:
    """Return the pipeline stages that may be the fullest: of equal ones the first, which has the most in flight."""
    chunks, pipeline = chunks_of(job, constants.software[job.software].cut), job.split.pipeline
    first: dict[tuple[Chunk, ...], int] = {}
    for place in range(pipeline):
        first.setdefault(chunks[place::pipeline], place)
    return list(first.values())


def verdict(job: Job, constants: Constants = CONSTANTS) -> Verdict:
    """Return whether a job fits its device's memory, by its fullest pipeline stage."""
    places = _candidates(job, constants)
    found = dict(zip(places, memory(job, constants, places), strict=True))
    place = max(places, key=lambda candidate: found[candidate].total_bytes)
    fullest, available = found[place], job.device.memory_bytes
    share = fullest.total_bytes / available
    fit = Fit.does_not_fit if share > 1 else Fit.tight if share > TIGHT_SHARE else Fit.fits
    parts = ", ".join(f"{name} {count / _GIB:.1f}" for name, count in list(fullest.largest())[:3])
    stage = f"pipeline stage {place}" if job.split.pipeline > 1 else "each rank"
    amounts = f"{fullest.total_bytes / _GIB:.1f} of {available / _GIB:.1f} GiB"
    beyond = f", {(fullest.total_bytes - available) / _GIB:.1f} too much" if share > 1 else ""
    return Verdict(
        fit=fit,
        pipeline_stage=place,
        needed_bytes=fullest.total_bytes,
        memory_bytes=available,
        reason=f"{fit}: {stage} needs {amounts}{beyond}; the most is {parts}",
    )
