"""How long one optimizer step takes, and on what: a job's operators and collectives on its schedule. No torch."""

from dataclasses import dataclass

from training.planner.block_time import BlockTime, Passes, PassTime
from training.planner.chunk_parameters import chunk_parameters
from training.planner.constants import CONSTANTS, Constants
from training.planner.job import Job
from training.planner.pipeline_time import Chunk, chunks_of, makespan_seconds
from training.planner.replica_exchange import gather_bytes, replica_exchange
from training.planner.roofline import traffic_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Where the seconds of a step go on the pipeline stage that works longest."""

    seconds: float
    """Of the whole step."""
    passes: PassTime
    """Forward and backward of all micro-batches."""
    bubble_seconds: float
    """Waiting for other pipeline stages."""
    data_seconds: float
    """Exchange between replicas at the end of the step that nothing hides."""
    optimizer_seconds: float
    other_seconds: float
    """Whatever a step takes besides."""


def step_time(job: Job, constants: Constants = CONSTANTS) -> StepTime:
    """Return the time of one optimizer step and its parts, which add up to it."""
    software, split = constants.software[job.software], job.split
    parts = BlockTime(job, constants)
    chunks = chunks_of(job, software.cut)
    passes = _chunk_passes(job, parts, chunks)
    transfer = parts.transfer() if split.pipeline > 1 else 0.0
    if software.pipeline_blocks and split.pipeline > 1:
        waiting = PassTime(pipeline=transfer)
        passes = [Passes(chunk.forward + waiting, chunk.backward + waiting) for chunk in passes]
    makespan = makespan_seconds(
        [chunk.forward.total for chunk in passes],
        [chunk.backward.total for chunk in passes],
        pipeline=split.pipeline,
        num_micro_batches=job.batch.accumulation,
        transfer_seconds=0.0 if software.pipeline_blocks else transfer,
    )
    spent = [sum(passes[place :: split.pipeline], Passes()) for place in range(split.pipeline)]
    busy = [both.forward.total + both.backward.total for both in spent]
    longest = max(range(split.pipeline), key=busy.__getitem__)
    ends = [_end_of_step(job, parts, chunks[place :: split.pipeline], spent[place]) for place in range(split.pipeline)]
    data, optimizer = max(end[0] for end in ends), max(end[1] for end in ends)
    return StepTime(
        seconds=makespan + data + optimizer + software.step_seconds,
        passes=(spent[longest].forward + spent[longest].backward) * job.batch.accumulation,
        bubble_seconds=makespan - busy[longest] * job.batch.accumulation,
        data_seconds=data,
        optimizer_seconds=optimizer,
        other_seconds=software.step_seconds,
    )


def _chunk_passes(job: Job, parts: BlockTime, chunks: tuple[Chunk, ...]) -> list[Passes]:
    dense = parts.block(is_dense=True) if any(chunk.dense_blocks for chunk in chunks) else Passes()
    expert = parts.block(is_dense=False) if job.model.experts is not None else Passes()
    known: dict[Chunk, Passes] = {}
    for chunk in chunks:
        if chunk not in known:
            passes = dense * chunk.dense_blocks + expert * chunk.expert_blocks
            if chunk.has_embedding:
                passes += parts.embedding()
            if chunk.has_head:
                passes += parts.head()
            known[chunk] = passes
    return [known[chunk] for chunk in chunks]


def _end_of_step(job: Job, parts: BlockTime, chunks: tuple[Chunk, ...], spent: Passes) -> tuple[float, float]:
    """Return seconds of exchange that is not hidden, and of the update, of one pipeline stage.

    Gradients are reduced beside the last micro-batch's backward, weights are gathered beside the next first forward.
    """
    split, software, collectives, groups = job.split, parts.software, parts.collectives, parts.groups
    dense, expert = chunk_parameters(job, chunks)
    same_experts = groups.expert_replicas.size
    held = dense + expert if split.zero_stage == 0 else dense / split.shards + expert / same_experts
    optimizer = traffic_seconds(software.update_bytes * held, job.device, parts.efficiency)
    exchange = replica_exchange(job, software)
    if not exchange.step_gathers and not exchange.step_reductions:
        return 0.0, optimizer
    reduce = gather = issue = 0.0
    for count, group in ((dense, groups.shards), (expert, groups.expert_replicas)):
        gradients = software.reduce_bytes * count
        message = software.whole_message_bytes if split.zero_stage == 0 else software.message_bytes
        messages = max(1.0, gradients / message)
        if exchange.step_reductions:
            sum_up = collectives.all_reduce if exchange.sums_whole else collectives.all_gather
            reduce += sum_up(gradients, group, messages=messages)
        if exchange.step_gathers:
            gather += collectives.all_gather(gather_bytes(job, software) * count, group)
            messages += 1
        if count:
            issue += messages * group.size * software.issue_seconds_per_member
    data = parts.hidden(reduce, spent.backward.total).data
    data += parts.hidden(gather, spent.forward.total).data if software.gathers_beside_forward else gather
    return data + issue, optimizer
