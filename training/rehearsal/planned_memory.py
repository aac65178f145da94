"""The memory that is planned for the ranks of each pipeline stage. No torch."""

from dataclasses import asdict

from training.models.memory import rank_memory
from training.models.rank_memory import RankMemory
from training.planner.memory import memory
from training.planner.stage_memory import StageMemory
from training.rehearsal.plan import Plan
from training.reporting.formatting import gibibytes


def planned_memory(plan: Plan) -> tuple[RankMemory | StageMemory, ...]:
    """Return the memory plan of each pipeline stage: launch.plan's, else that of the engines.

    launch.plan's, which also has what allocator and driver hold, needs the speed of the cluster's devices and links;
    where they are unknown, there is none for a tensor axis, which no engine runs.
    """
    config, training_stage = plan.config, plan.training_stage
    if plan.job is not None:
        return memory(plan.job)
    if plan.is_planned_only:
        return ()
    return tuple(
        rank_memory(config, training_stage, pipeline_stage=stage, regather=plan.regather, parts=plan.parts)
        for stage in range(plan.grid.pipeline)
    )


def described(part: RankMemory | StageMemory) -> str:
    """Return a memory plan as a line for people: its largest parts first."""
    parts = {name.removesuffix("_bytes"): count for name, count in asdict(part).items()}
    largest = sorted(parts.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {gibibytes(count)}" for name, count in largest if count >= part.total_bytes / 100)
    return f"{gibibytes(part.total_bytes)} at the highest ({listed})"
