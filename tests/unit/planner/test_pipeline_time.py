from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.planner.jobs import LLAMA_8B, MOE, job
from training.parallel.schedule import interleaving_fits, make_schedule, peak_in_flight
from training.parallel.simulate import simulate
from training.planner.job import Split
from training.planner.pipeline_time import Chunk, chunks_in_flight, chunks_of, makespan_seconds

COSTS = st.floats(0.5, 1.5)


def simulated(
    forward: list[float], backward: list[float], pipeline: int, num_micro_batches: int, transfer: float
) -> float:
    chunks = len(forward) // pipeline
    schedule = make_schedule(
        "1f1b" if chunks == 1 else "interleaved",
        num_pipeline_stages=pipeline,
        chunks_per_rank=chunks,
        num_micro_batches=num_micro_batches,
    )
    return simulate(
        schedule, forward_seconds=forward, backward_seconds=backward, transfer_seconds=transfer
    ).makespan_seconds


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 5), st.integers(1, 3), st.integers(1, 12))
def test_small_tables_are_simulated(data: st.DataObject, pipeline: int, chunks: int, num_micro_batches: int) -> None:
    if chunks > 1 and not interleaving_fits(pipeline, num_micro_batches):
        num_micro_batches = pipeline
    count = pipeline * chunks
    forward, backward = (data.draw(st.lists(COSTS, min_size=count, max_size=count)) for _ in range(2))
    num_micro_batches = min(num_micro_batches, 3 * pipeline)
    if chunks > 1 and not interleaving_fits(pipeline, num_micro_batches):
        num_micro_batches = pipeline
    transfer = data.draw(st.floats(0, 0.2))
    seconds = makespan_seconds(
        forward, backward, pipeline=pipeline, num_micro_batches=num_micro_batches, transfer_seconds=transfer
    )
    assert seconds == pytest.approx(simulated(forward, backward, pipeline, num_micro_batches, transfer))


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(2, 6), st.integers(1, 3), st.integers(4, 8))
def test_a_shorter_table_tells_the_longer_ones_time(
    data: st.DataObject, pipeline: int, chunks: int, rounds: int
) -> None:
    count = pipeline * chunks
    forward = [data.draw(COSTS)] * count
    backward = [2 * forward[0]] * count
    # The last chunk has the head too.
    forward[-1] *= data.draw(st.floats(1, 1.5))
    num_micro_batches = rounds * pipeline
    whole = simulated(forward, backward, pipeline, num_micro_batches, 0.01)
    seconds = makespan_seconds(
        forward, backward, pipeline=pipeline, num_micro_batches=num_micro_batches, transfer_seconds=0.01
    )
    assert seconds == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize(("pipeline", "chunks", "num_micro_batches"), [(8, 12, 64), (16, 8, 64), (8, 1, 512)])
def test_the_closed_form_for_large_tables_is_that_of_equal_stages(
    pipeline: int, chunks: int, num_micro_batches: int
) -> None:
    forward, backward = [1.0 / chunks] * pipeline * chunks, [2.0 / chunks] * pipeline * chunks
    seconds = makespan_seconds(
        forward, backward, pipeline=pipeline, num_micro_batches=num_micro_batches, transfer_seconds=0.0
    )
    assert seconds == pytest.approx(3 * num_micro_batches + 3 * (pipeline - 1) / chunks)
    assert seconds == pytest.approx(simulated(forward, backward, pipeline, num_micro_batches, 0.0))


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 5))
def test_activations_in_flight_are_those_of_the_table(pipeline: int, chunks: int, rounds: int) -> None:
    split, num_micro_batches = Split(pipeline=pipeline, chunks_per_rank=chunks), rounds * pipeline
    schedule = make_schedule(
        "1f1b" if chunks == 1 else "interleaved",
        num_pipeline_stages=pipeline,
        chunks_per_rank=chunks,
        num_micro_batches=num_micro_batches,
    )
    closed = tuple(chunks_in_flight(split, num_micro_batches, place) for place in range(pipeline))
    assert closed == peak_in_flight(schedule)


@given(
    num_blocks=st.integers(4, 130),
    pipeline=st.sampled_from([2, 4]),
    cut=st.sampled_from(["blocks", "cost", "balance"]),
)
def test_every_block_is_on_one_pipeline_stage(num_blocks: int, pipeline: int, cut: str) -> None:
    plan = job(model=replace(LLAMA_8B, num_blocks=num_blocks), pipeline=pipeline)
    chunks = chunks_of(plan, cut)
    assert sum(chunk.dense_blocks for chunk in chunks) == num_blocks
    assert [chunk.has_embedding for chunk in chunks] == [True, *[False] * (pipeline - 1)]
    assert [chunk.has_head for chunk in chunks] == [*[False] * (pipeline - 1), True]


def test_embedding_and_head_count_as_blocks_where_only_that_divides() -> None:
    chunks = chunks_of(job(model=replace(LLAMA_8B, num_blocks=126), pipeline=16), "blocks")
    assert [chunk.dense_blocks for chunk in chunks] == [7, *[8] * 14, 7]


def test_dense_blocks_come_first() -> None:
    first = chunks_of(job(model=MOE, pipeline=4), "blocks")[0]
    assert first == Chunk(dense_blocks=2, expert_blocks=6, has_embedding=True, has_head=False)
