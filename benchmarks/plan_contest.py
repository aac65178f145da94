"""Plans of small layouts beside what four processes on this machine do: step time, bytes sent, memory of tensors."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.crew import kill, rank_environment
from benchmarks.plan_layouts import LAYOUTS, WORLD_SIZE
from benchmarks.tables import table
from tests.distributed.configs import STAGE
from training.config.schema import RunConfig
from training.planner.calibration import Calibration, Point, corrected, fit
from training.planner.from_config import job_of
from training.planner.job import Job
from training.planner.memory import memory
from training.planner.regather import chosen_regather
from training.planner.step_time import step_time
from training.planner.this_machine import with_this_machine
from training.planner.traffic import traffic

_TIMEOUT_SECONDS = 1800.0
_MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedAndMeasured:
    """One layout."""

    name: str
    is_fitted: bool
    job: Job
    step_seconds: float
    """Median of the slowest rank's."""
    planned_step_seconds: float
    """With the constants that the fitted layouts gave."""
    sent_bytes: float
    """In one step, of the rank that sends most."""
    planned_sent_bytes: float
    tensor_bytes: int
    """Of the rank that holds most."""
    planned_tensor_bytes: float

    @property
    def step_error(self) -> float:
        """Planned over measured, less 1."""
        return self.planned_step_seconds / self.step_seconds - 1

    @property
    def sent_error(self) -> float:
        """Planned over measured, less 1."""
        return self.planned_sent_bytes / self.sent_bytes - 1

    @property
    def memory_error(self) -> float:
        """Planned over measured, less 1."""
        return self.planned_tensor_bytes / self.tensor_bytes - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanContest:
    """All layouts."""

    layouts: list[PlannedAndMeasured]
    calibration: Calibration


def compete_in_plans(
    *, num_steps: int, names: Sequence[str] = tuple(LAYOUTS), say: Callable[[str], None]
) -> PlanContest:
    """Return plans beside measurements.

    Raises:
        RuntimeError: a rank failed.
    """
    say(f"planner: {len(names)} layouts on {WORLD_SIZE} processes")
    measured = _measure(names, num_steps)
    configs = {name: LAYOUTS[name].config() for name in names}
    known = with_this_machine(next(iter(configs.values()))).cluster
    jobs = {name: job_of_layout(replace(config, cluster=known)) for name, config in configs.items()}
    seconds = {name: max(rank["step_seconds"] for rank in measured[name]) for name in names}
    fitted = [
        Point(what=name, job=jobs[name], measured_seconds=seconds[name]) for name in names if LAYOUTS[name].is_fitted
    ]
    calibration = fit(fitted) if num_steps and fitted else Calibration(points={})
    constants = corrected(calibration)
    return PlanContest(
        layouts=[
            PlannedAndMeasured(
                name=name,
                is_fitted=LAYOUTS[name].is_fitted,
                job=jobs[name],
                step_seconds=seconds[name],
                planned_step_seconds=step_time(jobs[name], constants).seconds,
                sent_bytes=max(rank["sent_bytes"] for rank in measured[name]),
                planned_sent_bytes=traffic(jobs[name]).total_bytes,
                tensor_bytes=int(max(rank["tensor_bytes"] for rank in measured[name])),
                planned_tensor_bytes=max(stage.tensors_bytes for stage in memory(jobs[name])),
            )
            for name in names
        ],
        calibration=calibration,
    )


def job_of_layout(config: RunConfig) -> Job:
    """Return the planner's job of a small run."""
    return chosen_regather(job_of(config, STAGE), config.parallel.regather)[0]


def plans(contest: PlanContest) -> list[str]:
    """Return the page's section."""
    rows = [
        [
            layout.name,
            "fitted" if layout.is_fitted else "left out",
            f"{1000 * layout.step_seconds:,.0f}",
            f"{100 * layout.step_error:+.0f}",
            f"{layout.sent_bytes / _MIB:.1f}",
            f"{100 * layout.sent_error:+.1f}",
            f"{layout.tensor_bytes / _MIB:.0f}",
            f"{100 * layout.memory_error:+.0f}",
        ]
        for layout in contest.layouts
    ]
    heads = ["layout", "step time", "step, ms", "plan, %", "sent, MiB", "plan, %", "tensors, MiB", "plan, %"]
    fitted = [abs(layout.step_error) for layout in contest.layouts if layout.is_fitted]
    left_out = [abs(layout.step_error) for layout in contest.layouts if not layout.is_fitted]
    sent = [abs(layout.sent_error) for layout in contest.layouts]
    held = [abs(layout.memory_error) for layout in contest.layouts]
    found = contest.calibration
    return [
        "## Plans",
        "",
        f"{len(contest.layouts)} layouts of a model of 8 blocks on {WORLD_SIZE} gloo processes of one thread each. "
        "Sent: by a counter in torch's process groups, of the rank that sends most, as a ring sends. Tensors: the "
        "highest sum of live storages within a step, of the rank that holds most. A plan's error is planned ÷ measured "
        "- 1.",
        "",
        *table(heads, rows),
        "",
        f"- Step time, mean absolute error: {100 * statistics.mean(fitted):.1f} % of the {len(fitted)} fitted ones "
        f"(worst {100 * max(fitted):.0f} %), {100 * statistics.mean(left_out):.1f} % of the {len(left_out)} left out "
        f"(worst {100 * max(left_out):.0f} %). Fitted: compute x {found.compute:.3g}, communication x "
        f"{found.links:.3g}, host x {found.host:.3g}, {1000 * (found.step_seconds or 0):.0f} ms a step besides.",
        f"- Bytes sent: mean {100 * statistics.mean(sent):.2f} %, worst {100 * max(sent):.1f} %. Tensors: mean "
        f"{100 * statistics.mean(held):.1f} %, worst {100 * max(held):.0f} %. Nothing of these is fitted.",
    ]


def _measure(names: Sequence[str], num_steps: int) -> dict[str, list[dict[str, float]]]:
    with tempfile.TemporaryDirectory(prefix="autarky-benchmarks-") as folder:
        output = Path(folder) / "seen.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD_SIZE}"]
        command += ["-m", "benchmarks.plan_rank", str(output), str(num_steps), *names]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=rank_environment() | {"TMPDIR": folder},
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=_TIMEOUT_SECONDS)
            finally:
                kill(process)  # with its ranks, however this ends
            if code != 0 or not output.exists():
                log.seek(0)
                told = log.read()[-3000:].decode(errors="replace")
                raise RuntimeError(f"{' '.join(command)} ended with {code}\n{told}")
        return json.loads(output.read_text())
