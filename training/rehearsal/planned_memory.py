"""The memory that is planned for the ranks of each pipeline stage. No torch."""

from dataclasses import asdict

from training.models.memory import RankMemory, rank_memory
from training.planner.from_config import job_of
from training.planner.memory import memory
from training.planner.stage_memory import StageMemory
from training.rehearsal.plan import Plan
from training.reporting.formatting import num_bytes


def planned_memory(plan: Plan) -> tuple[RankMemory | StageMemory, ...]:
    """Return the memory plan of each pipeline stage: the one that the engines follow, else launch.plan's.

    launch.plan's, for what no engine runs, needs the speed of the cluster's devices and links; else there is none.
    """
    config, training_stage = plan.config, plan.training_stage
    if not plan.is_planned_only:
        return tuple(
            rank_memory(config, training_stage, pipeline_stage=stage, regather=plan.regather, parts=plan.parts)
            for stage in range(plan.grid.pipeline)
        )
    accelerator = config.cluster.accelerator
    speeds = (config.cluster.network, accelerator.peak_flops_per_second, accelerator.memory_bytes_per_second)
    if any(speed is None for speed in speeds):
        return ()
    return memory(job_of(config, training_stage))


def described(part: RankMemory | StageMemory) -> str:
    """Return a memory plan as a line for people: its largest parts first."""
    parts = {name.removesuffix("_bytes"): count for name, count in asdict(part).items()}
    largest = sorted(parts.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {num_bytes(count)}" for name, count in largest if count >= part.total_bytes / 100)
    return f"{num_bytes(part.total_bytes)} at the highest ({listed})"
