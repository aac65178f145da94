"""How often a step moves weights and gradients between replicas, and by which collective. No torch."""

from dataclasses import dataclass

from training.planner.chunk_parameters import chunk_parameters
from training.planner.job import Job, NumberFormat
from training.planner.pipeline_time import chunks_of
from training.planner.software import Software

REUSE_ELEMENTS = 1_000_000_000
"""DeepSpeed 0.19.8, runtime/zero/config.py: `stage3_max_reuse_distance`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaExchange:
    """Counts for one parameter."""

    forward_gathers: float = 0.0
    """Of each micro-batch."""
    backward_gathers: float = 0.0
    """Of each micro-batch; a fraction where part of the weights is still there from the forward."""
    backward_reductions: int = 0
    """Of each micro-batch."""
    step_gathers: int = 0
    step_reductions: int = 0
    sums_whole: bool = False
    """Whether gradients are summed by an all-reduce, which sends twice what a reduce-scatter does."""

    @property
    def is_of_micro_batches(self) -> bool:
        """Whether anything goes with every micro-batch."""
        return bool(self.forward_gathers or self.backward_gathers or self.backward_reductions)

    def gathers(self, num_micro_batches: int) -> float:
        """Return gathers of one step."""
        return num_micro_batches * (self.forward_gathers + self.backward_gathers) + self.step_gathers

    def reductions(self, num_micro_batches: int) -> int:
        """Return reductions of one step, an all-reduce counting as two."""
        each = num_micro_batches * self.backward_reductions + self.step_reductions
        return each * (2 if self.sums_whole else 1)


def gather_bytes(job: Job, software: Software) -> float:
    """Return bytes of one weight on its way between replicas."""
    return 4.0 if job.number_format is NumberFormat.fp32 else software.gather_bytes


def replica_exchange(job: Job, software: Software) -> ReplicaExchange:
    """Return how a program's replicas exchange what they share."""
    if job.split.shards == 1:
        return ReplicaExchange()
    return _deepspeed(job, software) if software.is_deepspeed else _usual(job, software)


def _deepspeed(job: Job, software: Software) -> ReplicaExchange:
    """Return what our engines and DeepSpeed 0.19.8 do; tests/unit/planner/test_traffic.py holds it to the rehearsal.

    ZeRO-1 and ZeRO-2 sum gradients by all-reduces (runtime/zero/stage_1_and_2.py, `average_tensor`; reduce_scatter
    is for them a sum of what only the owner uses), ZeRO-2 after every micro-batch. ZeRO-3 reduces after every
    micro-batch too, however long its weights stay; without a pipeline it lets go of a weight only if so many elements
    are used before it is again (`stage3_max_reuse_distance`), on the way to the head and back.
    """
    split = job.split
    if split.zero_stage == 0:
        return ReplicaExchange(step_reductions=1, sums_whole=True)
    if split.zero_stage == 1:
        return ReplicaExchange(step_reductions=1, step_gathers=1, sums_whole=True)
    if split.zero_stage == 2:
        return ReplicaExchange(backward_reductions=1, step_gathers=1, sums_whole=True)
    if split.gathers_per_step and split.pipeline > 1:
        return ReplicaExchange(backward_reductions=1, step_gathers=1)
    kept = 0.0
    if split.pipeline == 1 and split.expert == 1:  # else layers are called one by one, and nothing is looked ahead
        kept = min(1.0, REUSE_ELEMENTS / 2 / sum(chunk_parameters(job, chunks_of(job, software.cut))))
    return ReplicaExchange(forward_gathers=1, backward_gathers=1 - kept, backward_reductions=1)


def _usual(job: Job, software: Software) -> ReplicaExchange:
    """Return what Megatron's distributed optimizer, FSDP and nanotron do.

    ZeRO-3 gathers and reduces for every micro-batch unless its weights stay gathered; ZeRO-2 does in programs that
    never hold whole gradients.
    """
    split = job.split
    if split.zero_stage == 0:
        return ReplicaExchange(step_reductions=1, sums_whole=True)
    if split.zero_stage == 3 and not split.gathers_per_step:
        return ReplicaExchange(forward_gathers=1, backward_gathers=1, backward_reductions=1)
    if split.zero_stage == 2 and not software.accumulates_whole:
        return ReplicaExchange(forward_gathers=1, backward_reductions=1)
    return ReplicaExchange(step_gathers=1, step_reductions=1)
