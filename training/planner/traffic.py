"""Bytes that one rank sends in one optimizer step, by axis. No torch.

An all-gather or reduce-scatter of S bytes among n ranks sends S (n-1)/n from each, an all-reduce twice as many: what a
ring sends, and the least there is.
"""

from dataclasses import dataclass

from training.planner.chunk_parameters import chunk_parameters
from training.planner.constants import CONSTANTS, Constants
from training.planner.job import Job, Recompute
from training.planner.operators import context_exchanges, element_bytes, hidden_bytes, repeats_exchanges, token_shards
from training.planner.pipeline_time import Chunk, chunks_of
from training.planner.replica_exchange import gather_bytes, replica_exchange


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes sent by a rank of one pipeline stage, axis by axis."""

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
    """Return the bytes that a rank sends in one step, of the pipeline stage whose ranks send most."""
    chunks = chunks_of(job, constants.software[job.software].cut)
    stages = (_stage_traffic(job, constants, chunks, place) for place in range(job.split.pipeline))
    return max(stages, key=lambda sent: sent.total_bytes)


def _stage_traffic(job: Job, constants: Constants, chunks: tuple[Chunk, ...], place: int) -> Traffic:
    split, batch = job.split, job.batch
    mine = range(place, len(chunks), split.pipeline)
    stage = [chunks[index] for index in mine]
    routed = sum(chunk.expert_blocks for chunk in stage)
    blocks = sum(chunk.dense_blocks for chunk in stage) + routed
    again = split.recompute is Recompute.full
    hidden = hidden_bytes(job)
    # Hidden states around the two halves of each block.
    halves = 2.0 * blocks
    exchanged = 0.0
    if job.model.experts is not None:
        top_k = job.model.experts.experts_per_token
        if split.tensor_shards_sequence:
            halves += (top_k - 1) * routed  # Megatron sums up every copy of a token, before they are weighted
        exchanged = 2 * (2 + repeats_exchanges(job)) * routed * hidden * top_k / token_shards(job)
    # An all-gather and a reduce-scatter, forward and backward; sharded tokens are gathered once more in backward.
    ways = 2 * (2 + again) + split.tensor_shards_sequence
    transfers = sum((index < len(chunks) - 1) + (index > 0) for index in mine) if split.pipeline > 1 else 0
    return Traffic(
        tensor_bytes=batch.accumulation * halves * ways * hidden * _share(split.tensor),
        context_bytes=batch.accumulation * blocks * _context_bytes(job),
        expert_bytes=batch.accumulation * exchanged * _share(split.expert),
        data_bytes=_data_bytes(job, constants, *chunk_parameters(job, stage)),
        # Activations forward, gradients back.
        pipeline_bytes=batch.accumulation * transfers * hidden / token_shards(job),
    )


def _context_bytes(job: Job) -> float:
    """Return what one block's attention sends of one micro-batch: keys and values, or all heads there and back."""
    split, again = job.split, repeats_exchanges(job)
    exchanged = [element_bytes(job) * count for count in context_exchanges(job)]
    if split.context_exchange == "heads":
        return (2 + again) * sum(exchanged) * _share(split.context)
    _, keys, values, _ = exchanged
    return (3 + again) * (keys + values) * (split.context - 1)


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks


def _data_bytes(job: Job, constants: Constants, dense: float, expert: float) -> float:
    software, split = constants.software[job.software], job.split
    same_experts = max(1, split.shards // split.expert)
    # Experts that are apart are gathered for the second forward too, which their layer's own weights wait for.
    repeated = software.is_deepspeed and split.expert > 1 and repeats_exchanges(job)
    parameters = dense * _share(split.shards) + expert * _share(same_experts)
    gathered_again = dense * _share(split.zero3_group or split.shards) + expert * _share(same_experts)
    exchange, micro_batches = replica_exchange(job, software), job.batch.accumulation
    again = micro_batches * exchange.backward_gathers
    weights = (exchange.gathers(micro_batches) - again) * parameters + again * gathered_again
    weights += again * repeated * expert * _share(same_experts)
    weights *= gather_bytes(job, software)
    return weights + exchange.reductions(micro_batches) * software.reduce_bytes * parameters
