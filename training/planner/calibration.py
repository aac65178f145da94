"""Correcting the planner's constants by real runs of a cluster. No torch.

Four factors, not one per layout: what computes, what communicates, what the host needs for a block, and what a step
takes besides. Each is drawn towards 1, so that two runs do not move what only many could tell.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from training.config.load import load_frozen
from training.config.schema import ClusterConfig
from training.durable_files import write_durably
from training.errors import ConfigError
from training.plain_files import read_json, typed
from training.planner.constants import CONSTANTS, Constants
from training.planner.from_config import job_of
from training.planner.job import Job
from training.planner.regather import chosen_regather
from training.planner.software import OURS
from training.planner.step_time import step_time
from training.planner.this_machine import with_this_machine
from training.reporting.metrics import FILE_NAME, latest_steps, read_metrics
from training.reporting.planned import settled

_VERSION = 1
_DOUBT = 1.5
"""Standard deviation of a factor's logarithm before anything was measured: a fifth to five times is likely."""
_NOISE = 0.05
"""Standard deviation of a measured step's logarithm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One training stage of a real run."""

    what: str
    job: Job
    measured_seconds: float
    """Median of its steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """By how much constants are corrected, and what that was learned from."""

    compute: float = 1.0
    """Factor of the time of matrix products, attention and memory-bound operators."""
    links: float = 1.0
    """Factor of the time of communication."""
    host: float = 1.0
    """Factor of the host's time for a block."""
    step_seconds: float | None = None
    """What every step takes besides; null leaves it."""
    points: dict[str, list[float]]
    """Run and training stage -> [measured, planned before, planned after], in seconds a step."""

    def describe(self) -> str:
        """Return lines for people."""
        lines = [
            f"compute x {self.compute:.3g}, communication x {self.links:.3g}, host x {self.host:.3g}"
            + (f", {self.step_seconds:.3g} s a step besides" if self.step_seconds is not None else "")
        ]
        lines += [
            f"  {what}: measured {measured:.3g} s, planned {before:.3g} s before and {after:.3g} s now"
            for what, (measured, before, after) in self.points.items()
        ]
        return "\n".join(lines)


def constants_of(cluster: ClusterConfig) -> Constants:
    """Return the constants that plans for a cluster use.

    Raises:
        ConfigError: its calibration file is not there, or is none.
    """
    if cluster.calibration is None:
        return CONSTANTS
    path = Path(cluster.calibration)
    try:
        match read_json(path):
            case {"version": 1, "calibration": dict() as values}:
                calibration = typed(Calibration, values)
                factors = (calibration.compute, calibration.links, calibration.host)
                if not all(1e-6 < factor < 1e6 for factor in factors) or (calibration.step_seconds or 0.0) < 0:
                    raise ValueError("a factor is not between a millionth and a million, or a time is negative")
                return corrected(calibration)
        raise ValueError("it is no calibration of this version")
    except (OSError, ValueError) as error:
        remedy = "python -m launch.plan --calibrate FILE RUN_DIR … writes one; cluster.calibration=null uses none"
        raise ConfigError("cluster.calibration", path, str(error), remedy) from None


def corrected(calibration: Calibration, constants: Constants = CONSTANTS) -> Constants:
    """Return the constants with a calibration's corrections."""
    efficiency = constants.efficiency
    compute = {
        name: getattr(efficiency, name) / calibration.compute
        for name in ("gemm_sustained", "ampere_gemm_sustained", "gemm_sustained_fp8", "memory")
    }
    links = {name: getattr(efficiency, name) / calibration.links for name in ("node_links", "cluster_links")}
    kernels = {
        name: replace(
            kernel,
            share_of_peak=kernel.share_of_peak / calibration.compute,
            ampere_share_of_peak=kernel.ampere_share_of_peak / calibration.compute,
        )
        if kernel.is_fused  # others are matrix products and memory traffic
        else kernel
        for name, kernel in constants.kernels.items()
    }
    ours = {
        name: replace(
            software,
            host_seconds_per_block=software.host_seconds_per_block * calibration.host,
            step_seconds=software.step_seconds if calibration.step_seconds is None else calibration.step_seconds,
        )
        for name, software in constants.software.items()
        if name in OURS
    }
    return Constants(replace(efficiency, **compute, **links), kernels, constants.software | ours)


def calibrate(run_directories: Sequence[Path]) -> Calibration:
    """Return the corrections under which plans fit real runs best.

    Raises:
        ConfigError: a directory is no run, or none has enough steps.
    """
    points = [point for directory in run_directories for point in measured_points(directory)]
    if not points:
        raise ConfigError(
            "run directory",
            ", ".join(map(str, run_directories)),
            "no training stage has two steps in a row of one start",
            "name runs that have trained for a while",
        )
    return fit(points)


def measured_points(run_directory: Path) -> list[Point]:
    """Return the training stages of a run that have steps to measure.

    Raises:
        ConfigError: the directory is no run, or its cluster is not known well enough to plan.
    """
    config = with_this_machine(load_frozen(run_directory))
    if not (run_directory / FILE_NAME).is_file():
        reason = f"there is no {FILE_NAME} in it"
        raise ConfigError("run directory", run_directory, reason, "name one that has started")
    steps = latest_steps(read_metrics(run_directory / FILE_NAME).records)
    points = []
    for name in config.stages:
        *ramp, _ = config.batch_sizes(name).lengths(config.num_steps(name))
        full = [step for step in steps if step.stage == name][sum(number for number, _ in ramp) :]
        seconds = [step.seconds for step in settled(full)]
        if seconds:
            job, _ = chosen_regather(job_of(config, name), config.layout_of(name).regather)
            what = f"{run_directory.resolve().name} {name}"
            points.append(Point(what=what, job=job, measured_seconds=statistics.median(seconds)))
    return points


def fit(points: Sequence[Point]) -> Calibration:
    """Return the most likely corrections, given the doubt about each and the noise of steps."""
    before = [step_time(point.job).seconds for point in points]
    least_step = min(point.measured_seconds for point in points)

    def calibration(values: Sequence[float]) -> Calibration:
        compute, links, host, besides = map(math.exp, values)
        return Calibration(
            compute=compute, links=links, host=host, step_seconds=usual_step_seconds * besides, points={}
        )

    usual_step_seconds = min(CONSTANTS.software[OURS[0]].step_seconds, least_step / 10)

    def misses(values: Sequence[float]) -> list[float]:
        constants = corrected(calibration(values))
        errors = [
            math.log(step_time(point.job, constants).seconds / point.measured_seconds) / _NOISE for point in points
        ]
        return [*errors, *(value / _DOUBT for value in values)]

    # Imported only now: every start reads what a calibration found, none makes one.
    from scipy.optimize import least_squares

    found = calibration(least_squares(misses, [0.0] * 4).x)
    after = [step_time(point.job, corrected(found)).seconds for point in points]
    told = {
        point.what: [point.measured_seconds, old, new] for point, old, new in zip(points, before, after, strict=True)
    }
    return replace(found, points=told)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration file, whole or not at all."""
    content: Mapping[str, object] = {"version": _VERSION, "calibration": asdict(calibration)}
    write_durably(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
