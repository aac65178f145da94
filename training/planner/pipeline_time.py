"""How the model is cut into a pipeline's chunks, and how long the schedule of all micro-batches takes. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from training.config.model_schema import ModelConfig
from training.models.cut import costs_of
from training.parallel.partition import balance
from training.parallel.schedule import Kind, execution_order, interleaving_fits, make_schedule
from training.planner.job import Job, ModelShape, Split
from training.planner.model_config import model_config

_LARGEST_TABLE = 4_000
"""Actions of a schedule table that are simulated one by one; a larger one costs more time than it tells."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of the model that a pipeline stage runs at a time."""

    dense_blocks: int
    expert_blocks: int
    has_embedding: bool
    has_head: bool


def chunks_of(job: Job, cut: str) -> tuple[Chunk, ...]:
    """Return the chunks in model order; chunk c is on pipeline stage c % pipeline.

    Args:
        job: the run.
        cut: `Software.cut`.
    """
    count = job.split.pipeline * job.split.chunks_per_rank
    if job.split.blocks_per_chunk is not None:
        return _with_ends(job.model, job.split.blocks_per_chunk)
    if cut == "balance" and count > 1:
        tokens = job.batch.micro_batch * job.batch.sequence_length / job.split.context
        sizes = _as_our_engines(model_config(job), count, job.batch.sequence_length, tokens, job.split.expert)
        return _with_ends(job.model, sizes)
    return _chunks(job.model, count, cut)


@lru_cache(maxsize=4096)
def _as_our_engines(
    model: ModelConfig, count: int, sequence_length: int, rank_tokens: float, expert: int
) -> tuple[int, ...]:
    """Return blocks of each chunk as training/models/cut.py cuts."""
    costs = costs_of(model, sequence_length=sequence_length, rank_tokens=rank_tokens, expert=expert)
    return tuple(sum(1 <= layer <= model.num_layers for layer in part) for part in balance(costs, count))


@lru_cache(maxsize=4096)
def _chunks(model: ModelShape, count: int, cut: str) -> tuple[Chunk, ...]:
    if count == 1:
        sizes = [model.num_blocks]
    elif cut == "blocks":
        sizes = _alike(model.num_blocks, count)
    else:
        sizes = _by_cost(model, count)
    return _with_ends(model, tuple(sizes))


@lru_cache(maxsize=4096)
def _with_ends(model: ModelShape, sizes: tuple[int, ...]) -> tuple[Chunk, ...]:
    """Return chunks of so many blocks, with the embedding in the first and the head in the last."""
    count = len(sizes)
    dense_left = model.num_blocks if model.experts is None else model.experts.num_dense_blocks
    chunks = []
    for index, size in enumerate(sizes):
        dense = min(size, dense_left)
        dense_left -= dense
        chunks.append(Chunk(dense, size - dense, index == 0, index == count - 1))
    return tuple(chunks)


def _alike(num_blocks: int, count: int) -> list[int]:
    """Return blocks of each chunk as Megatron deals them: alike, or embedding and head counting as a block each."""
    if num_blocks % count and (num_blocks + 2) % count == 0:
        size = (num_blocks + 2) // count
        return [size - 1, *[size] * (count - 2), size - 1]
    fewer, more = divmod(num_blocks, count)
    # Neither holds: the ends, which also have embedding and head, get the fewer.
    inner_first = sorted(range(count), key=lambda index: (index in (0, count - 1), index))
    return [fewer + (index in inner_first[:more]) for index in range(count)]


def _by_cost(model: ModelShape, count: int) -> list[int]:
    """Return blocks of each chunk as nanotron deals them; the head counts as many blocks as it has parameters."""
    block = model.attention_parameters + model.ffn_matrices * model.hidden_size * model.ffn_size
    head = model.vocab_size * model.hidden_size
    # nanotron, src/nanotron/models/base.py: a block goes to the current rank, and the rank changes once the cost up to
    # here reaches its share (the sweep's memory figures show that reaching is enough).
    total, sizes, rank = model.num_blocks * block + head, [0] * count, 0
    for cost in accumulate([block] * model.num_blocks):
        sizes[rank] += 1
        if cost >= total * (rank + 1) / count and rank < count - 1:
            rank += 1
    return sizes


def chunks_in_flight(split: Split, num_micro_batches: int, pipeline_stage: int) -> int:
    """Return the most activations of one chunk that a pipeline stage holds at once: `schedule.peak_in_flight`, closed.

    1F1B: one for each pipeline stage from here on. Interleaved: a round for each chunk but the last, and two for each
    hop to the last pipeline stage (training/parallel/schedule.py, `interleaved`).
    """
    hops = split.pipeline - 1 - pipeline_stage
    if split.chunks_per_rank == 1:
        return min(num_micro_batches, hops + 1)
    rounds = max(1, num_micro_batches // split.pipeline)
    warm_up = (split.chunks_per_rank - 1) * -(-num_micro_batches // rounds) + 2 * hops
    return min(num_micro_batches * split.chunks_per_rank, warm_up + 1)


def makespan_seconds(
    forward_seconds: Sequence[float],
    backward_seconds: Sequence[float],
    *,
    pipeline: int,
    num_micro_batches: int,
    transfer_seconds: float,
) -> float:
    """Return how long the schedule of all micro-batches takes, 1F1B or interleaved with more than one chunk on a rank.

    Small tables are simulated. Of larger ones the first rounds are, and the rest takes as long as the busiest pipeline
    stage's work: once a pipeline is full, its slowest stage is never idle. Larger ones still take what is known of
    equal stages (arXiv:2104.04473, sections 2.1 and 2.2).

    Args:
        forward_seconds: cost of one micro-batch's forward pass, for each chunk in model order.
        backward_seconds: the same for the backward pass.
        pipeline: pipeline stages.
        num_micro_batches: of one step.
        transfer_seconds: from a result to its arrival on another pipeline stage, beside the computation.
    """
    both = [forward + backward for forward, backward in zip(forward_seconds, backward_seconds, strict=True)]
    busy = [sum(both[place::pipeline]) for place in range(pipeline)]
    if pipeline == 1:
        return num_micro_batches * busy[0]
    chunks_per_rank = len(both) // pipeline
    simulated = num_micro_batches
    if num_micro_batches > 3 * pipeline:
        simulated = 2 * pipeline + num_micro_batches % pipeline
    name = "1f1b" if chunks_per_rank == 1 else "interleaved"
    fits = name == "1f1b" or interleaving_fits(pipeline, simulated)
    if not fits or 2 * simulated * len(both) > _LARGEST_TABLE:
        longest = max(busy)
        fill = (sum(busy) - longest) / chunks_per_rank + 2 * (pipeline - 1) * transfer_seconds
        return num_micro_batches * longest + fill
    costs = [*forward_seconds, *backward_seconds]
    table = _table(name, pipeline, chunks_per_rank, simulated)
    return _run(table, costs, transfer_seconds) + (num_micro_batches - simulated) * max(busy)


@lru_cache(maxsize=256)
def _table(name: str, pipeline: int, chunks_per_rank: int, num_micro_batches: int) -> tuple[tuple[int, ...], ...]:
    """Return a schedule's actions in an order that can be executed, as numbers.

    Of each: the index of its cost, of the action before it on its pipeline stage, of up to one action that it needs
    from another one and of up to one that it needs besides; -1 where there is none.
    """
    schedule = make_schedule(
        name, num_pipeline_stages=pipeline, chunks_per_rank=chunks_per_rank, num_micro_batches=num_micro_batches
    )
    index, last = {}, [-1] * pipeline
    rows = []
    for number, action in enumerate(execution_order(schedule)):
        stage = schedule.pipeline_stage_of(action.chunk)
        needed = [
            (index[other], schedule.pipeline_stage_of(other.chunk) != stage) for other in schedule.inputs_of(action)
        ]
        remote = [other for other, is_remote in needed if is_remote]
        local = [other for other, is_remote in needed if not is_remote]
        cost = action.chunk + (schedule.num_chunks if action.kind is Kind.backward else 0)
        rows.append((cost, last[stage], remote[0] if remote else -1, local[0] if local else -1))
        index[action] = last[stage] = number
    return tuple(rows)


def _run(table: tuple[tuple[int, ...], ...], costs: Sequence[float], transfer_seconds: float) -> float:
    """Return when the last action ends."""
    ends: list[float] = []
    for cost, before, remote, local in table:
        start = ends[before] if before >= 0 else 0.0
        if remote >= 0 and ends[remote] + transfer_seconds > start:
            start = ends[remote] + transfer_seconds
        if local >= 0 and ends[local] > start:
            start = ends[local]
        ends.append(start + costs[cost])
    return max(ends)
