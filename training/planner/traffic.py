"""Bytes that one rank sends in one optimizer step, by axis. No torch.

An all-gather or reduce-scatter of S bytes among n ranks sends S (n-1)/n from each, an all-reduce twice as many: what a
ring sends, and the least there is.
"""

from dataclasses import dataclass

from training.planner.chunk_parameters import chunk_parameters
from training.planner.constants import CONSTANTS, Constants
from training.planner.job import Job, Recompute
from training.planner.operators import context_keys, context_queries, element_bytes, hidden_bytes, token_shards
from training.planner.pipeline_time import chunks_of
from training.planner.replica_exchange import gather_bytes, replica_exchange


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes sent by a rank of the pipeline stage that sends most, axis by axis."""

    tensor_bytes: float = 0.0
    context_bytes: float = 0.0
    expert_bytes: float = 0.0
    data_bytes: float = 0.0
    """Weights and gradients, between replicas."""
    pipeline_bytes: float = 0.0

    @property
    def total_bytes(self) -> float:
        """All axes together."""
        return self.tensor_bytes + self.context_bytes + self.expert_bytes + self.data_bytes + self.pipeline_bytes


def traffic(job: Job, constants: Constants = CONSTANTS) -> Traffic:
    """Return the bytes that a rank sends in one step."""
    software, split, batch = constants.software[job.software], job.split, job.batch
    chunks = chunks_of(job, software.cut)
    stages = [chunks[place :: split.pipeline] for place in range(split.pipeline)]
    blocks = max(sum(chunk.dense_blocks + chunk.expert_blocks for chunk in stage) for stage in stages)
    routed = max(sum(chunk.expert_blocks for chunk in stage) for stage in stages)
    again = split.recompute is Recompute.full
    hidden = hidden_bytes(job)
    # Hidden states around the two halves of each block; where experts are cut too, every copy of a token.
    halves = 2.0 * blocks
    exchanged = 0.0
    if job.model.experts is not None:
        top_k = job.model.experts.experts_per_token
        halves += (top_k - 1) * routed
        exchanged = 4 * routed * hidden * top_k / token_shards(job)
    # An all-gather and a reduce-scatter, forward and backward; sharded tokens are gathered once more in backward.
    ways = 2 * (2 + again) + split.tensor_shards_sequence
    return Traffic(
        tensor_bytes=batch.accumulation * halves * ways * hidden * _share(split.tensor),
        context_bytes=batch.accumulation * blocks * _context_bytes(job),
        expert_bytes=batch.accumulation * exchanged * _share(split.expert),
        data_bytes=max(_data_bytes(job, constants, *chunk_parameters(job, stage)) for stage in stages),
        pipeline_bytes=_pipeline_bytes(job),
    )


def _context_bytes(job: Job) -> float:
    """Return what one block's attention sends of one micro-batch: keys and values, or all heads there and back."""
    split, again = job.split, job.split.recompute is Recompute.full
    queries, keys = (element_bytes(job) * count for count in (context_queries(job), context_keys(job)))
    if split.context_exchange == "heads":
        return (2 + again) * 2 * (queries + keys) * _share(split.context)
    return (3 + again) * 2 * keys * (split.context - 1)


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks


def _data_bytes(job: Job, constants: Constants, dense: float, expert: float) -> float:
    software, split = constants.software[job.software], job.split
    same_experts = max(1, split.shards // split.expert)
    parameters = dense * _share(split.shards) + expert * _share(same_experts)
    gathered_again = dense * _share(split.zero3_group or split.shards) + expert * _share(same_experts)
    exchange, micro_batches = replica_exchange(job, software), job.batch.accumulation
    again = micro_batches * exchange.backward_gathers
    weights = (exchange.gathers(micro_batches) - again) * parameters + again * gathered_again
    weights *= gather_bytes(job, software)
    return weights + exchange.reductions(micro_batches) * software.reduce_bytes * parameters


def _pipeline_bytes(job: Job) -> float:
    """Return activations forward and gradients back: a middle pipeline stage sends both, of every chunk."""
    split = job.split
    if split.pipeline == 1:
        return 0.0
    ways = 2 * split.chunks_per_rank if split.pipeline > 2 or split.chunks_per_rank > 1 else 1
    return ways * job.batch.accumulation * hidden_bytes(job) / token_shards(job)
