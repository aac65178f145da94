"""Which samples each rank reads, step by step, by their index in the training stage. No torch.

The order of samples within a source does not matter here: `training.data.order` is a bijection, and what it is asked
for are these indices (training/data/loader.py, `StageLoader.micro_batches`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.rehearsal.plan import Plan


@dataclass(frozen=True, slots=True)
class SampledStep:
    """The samples of one optimizer step."""

    name: str
    first_sample: int
    """Where the step has to begin: the samples that were read before it."""
    samples: NDArray[np.int64]
    """[pipeline stage, replica, micro-batch, sequence] -> index of the sample in the training stage."""


def build_samples(plan: Plan) -> tuple[SampledStep, ...]:
    """Return two steps, and the one that follows them when the run was stopped there and goes on from a checkpoint."""
    return tuple(
        SampledStep(name, batch * plan.global_batch, _samples(plan, batch))
        for batch, name in enumerate(("step 1", "step 2", "step 3, the first after a resume"))
    )


def _samples(plan: Plan, batch: int) -> NDArray[np.int64]:
    """Micro-batch m of replica r holds the samples m*(R*B) + r*B … +B of the global batch (R replicas, B sequences)."""
    first = batch * plan.global_batch
    order = np.arange(first, first + plan.global_batch, dtype=np.int64)
    by_micro_batch = order.reshape(plan.accumulation, plan.grid.data, plan.micro_batch)
    by_replica = by_micro_batch.transpose(1, 0, 2)
    return np.broadcast_to(by_replica, (plan.grid.pipeline, *by_replica.shape)).copy()
