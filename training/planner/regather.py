"""When a job under ZeRO-3 gathers its weights. No torch."""

from training.config.schema import Regather
from training.models.memory import PLANNED_SHARE
from training.planner.constants import CONSTANTS, Constants
from training.planner.from_config import with_regather
from training.planner.job import Job
from training.planner.memory import memory


def chosen_regather(job: Job, configured: Regather, constants: Constants = CONSTANTS) -> tuple[Job, str]:
    """Return the job with its weights gathered when the config says, and the reason; auto decides as the engines do.

    For what our engines run, that is training/models/memory.py's `choose_regather`.
    """
    if job.split.zero_stage < 3:
        return job, ""
    if job.split.pipeline == 1:
        return job, "per micro-batch: without a pipeline it is DeepSpeed's own way"
    if configured is not Regather.auto:
        per_step = configured is Regather.per_step
        return with_regather(job, per_step=per_step), f"{configured}: parallel.regather says so"
    kept = with_regather(job, per_step=True)
    needed = max(stage.tensors_bytes for stage in memory(kept, constants))
    share = needed / job.device.memory_bytes
    if share <= PLANNED_SHARE:
        return kept, f"per_step: with the weights kept gathered it takes {100 * share:.0f} % of the memory"
    reason = f"per_microbatch: with the weights kept gathered it would take {100 * share:.0f} % of the memory"
    return with_regather(job, per_step=False), reason
