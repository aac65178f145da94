"""Which published rows calibrate, which are left out, and which cannot be used: chosen before anything was fitted.

The reasons stand in `published/README.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.planner.flops import Counted, model_flops
from training.planner.job import Batch, Job, ModelShape, NumberFormat, Split
from training.planner.published import RUNS, job_of, read_rows, sweep_rows

CONTRADICTION = 0.05
"""Relative difference of two published times of the same inputs above which neither is used."""
FAULT_SHARE_OF_PEAK = 0.02
"""Model FLOPs over peak below which a run of the sweep is taken for a fault."""
_SWEEP = "HuggingFace nanotron"
_LEFT_OUT_SOURCES = (
    "BigScience",
    "Narayanan",
    "NVIDIA Megatron-Bridge performance summary",
    "Megatron-LM examples",
    "torchtitan benchmarks async TP",
    "torchtitan benchmarks H200",
)
_MOST_GPUS = {"MosaicML": 127, _SWEEP: 255, "NVIDIA dgxc": 128, "torchtitan": 127, "Megatron-Bridge perf skills": 10**9}
"""Of sources that are used: rows with more GPUs are left out."""
_WIDEST = {"MosaicML": 8191, _SWEEP: 8191}
"""Of sources that are used: rows of wider models are left out."""


class Use(StrEnum):
    """What a row's step time is used for."""

    calibration = "calibration"
    left_out = "left out"
    fault = "fault"
    """A run of the sweep that something else than its layout slowed down."""
    none = "none"


@dataclass(frozen=True, slots=True)
class Run:
    """A published row, understood."""

    row: Mapping[str, Any]
    job: Job
    step_seconds: float | None
    use: Use
    reason: str = ""
    """Why its time is not used."""

    @property
    def name(self) -> str:
        """The row's identity, or its place."""
        return str(self.row.get("id") or self.row.get("name") or "row")

    @property
    def source(self) -> str:
        """Where it was published."""
        return str(self.row.get("source") or self.row.get("framework"))


def runs_of(path: Path = RUNS) -> tuple[list[Run], list[str]]:
    """Return the rows of a file as runs, and a line for each that cannot be understood, with the reason.

    Rows of another file than `published/runs.csv` calibrated nothing: they are left out, whatever their source.
    """
    runs, skipped = [], []
    for row in read_rows(path):
        if str(row.get("complete", "")).lower() not in ("", "true", "none"):
            skipped.append(f"{row.get('id')}: the row itself says that it is not complete")
            continue
        try:
            job = job_of(row)
        except ConfigError as error:
            skipped.append(f"{row.get('id')}: {error}")
            continue
        seconds = _step_seconds(row, job)
        use, reason = _use(row, job, seconds)
        if use is Use.calibration and path.resolve() != RUNS.resolve():
            use = Use.left_out
        runs.append(Run(row, job, seconds, use, reason))
    return _without_contradictions(runs), skipped


def sweep_runs() -> list[Run]:
    """Return the nanotron sweep's runs that ended well, by the same rules, without those that `runs.csv` has too."""
    known = {_layout(run.job) for run in runs_of()[0] if run.job.software.startswith("nanotron")}
    runs = []
    for row in sweep_rows():
        if row["status"] != "Success":
            continue
        job = job_of(row)
        seconds = _step_seconds(row, job)
        if seconds is not None and _layout(job) not in known:
            runs.append(Run(row, job, seconds, *_use(row, job, seconds)))
    return runs


def _layout(job: Job) -> tuple[ModelShape, Split, Batch]:
    return job.model, job.split, job.batch


def _step_seconds(row: Mapping[str, Any], job: Job) -> float | None:
    if row.get("step_time_s") not in (None, ""):
        return float(row["step_time_s"])
    if row.get("tokens_per_s_per_gpu") not in (None, ""):
        return job.tokens_per_step / (float(row["tokens_per_s_per_gpu"]) * job.split.world_size)
    return None


def _use(row: Mapping[str, Any], job: Job, seconds: float | None) -> tuple[Use, str]:
    source = str(row.get("source") or "")
    if seconds is None:
        return Use.none, "no step time is published"
    if "rowwise" in str(row["precision"]):
        return Use.none, "fp8 with a scale for each row is no number format of the planner"
    if str(row.get("oom")) == "True":
        return Use.none, "the sweep notes out-of-memory errors in this run"
    if str(row.get("after_pp_fix")) == "False" and job.split.pipeline > 1:
        return Use.none, "a pipeline run from before the sweep's repair of its pipeline"
    if source.startswith(_SWEEP):
        reached = model_flops(job, Counted.full) / (seconds * job.split.world_size)
        if reached < FAULT_SHARE_OF_PEAK * job.device.peak_flops[NumberFormat.bf16]:
            return Use.fault, f"a run of the sweep below {FAULT_SHARE_OF_PEAK:.0%} of peak"
    if source.startswith(_LEFT_OUT_SOURCES):
        return Use.left_out, ""
    return (Use.left_out if _is_large(source, job) else Use.calibration), ""


def is_large(run: "Run") -> bool:
    """Return whether a run is larger than those of its source that calibrate, or its source does not calibrate."""
    return _is_large(run.source, run.job)


def _is_large(source: str, job: Job) -> bool:
    for start, most in _MOST_GPUS.items():
        if source.startswith(start):
            return job.split.world_size > most or job.model.hidden_size > _WIDEST.get(start, 10**9)
    return True


def _without_contradictions(runs: Sequence[Run]) -> list[Run]:
    contradicted = set()
    timed = [(index, run) for index, run in enumerate(runs) if run.step_seconds and run.use is not Use.none]
    for place, (index, run) in enumerate(timed):
        for other_index, other in timed[:place]:
            assert run.step_seconds
            assert other.step_seconds
            if other.job == run.job and abs(other.step_seconds / run.step_seconds - 1) > CONTRADICTION:
                contradicted |= {index, other_index}
    reason = f"the same inputs are published with times more than {CONTRADICTION:.0%} apart"
    return [
        Run(run.row, run.job, run.step_seconds, Use.none, reason) if index in contradicted else run
        for index, run in enumerate(runs)
    ]
