"""The search looks at every layout once, says why the illegal ones are, and ranks what fits."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config.load import compose
from training.config.nearest_numbers import divisors
from training.planner.from_config import job_of
from training.planner.job import Job
from training.planner.layouts import Limits, Refusals, legal_layouts, runs_today
from training.planner.memory import Fit, verdict
from training.planner.search import pareto, search

MAI1 = job_of(compose(["experiment=mai1_500b"], to_plan=True), "pretrain")
LLAMA3 = job_of(compose(["experiment=llama3_405b"], to_plan=True), "pretrain")
WORLD, BATCH = 16_384, 2048


def small(num_blocks: int, num_heads: int, devices_per_node: int) -> Job:
    return replace(
        LLAMA3,
        model=replace(
            LLAMA3.model,
            num_blocks=num_blocks,
            num_heads=num_heads,
            head_size=64,
            ffn_size=64 * num_heads,
            vocab_size=64,
            num_kv_heads=num_heads,
        ),
        network=replace(LLAMA3.network, devices_per_node=devices_per_node),
    )


@settings(max_examples=60, deadline=None)
@given(
    world=st.integers(1, 24),
    batch=st.integers(1, 24),
    num_blocks=st.integers(1, 6),
    num_heads=st.integers(1, 8),
    node=st.sampled_from([1, 2, 4]),
)
def test_every_legal_layout_is_found_once_and_covers_world_and_batch(
    world: int, batch: int, num_blocks: int, num_heads: int, node: int
) -> None:
    template = small(num_blocks, num_heads, node)
    jobs = list(legal_layouts(template, Limits(world_size=world, global_batch=batch), Refusals()))
    assert max(Counter((job.split, job.batch) for job in jobs).values(), default=1) == 1
    for job in jobs:
        split = job.split
        assert split.world_size == world
        assert split.replicas * job.batch.micro_batch * job.batch.accumulation == batch
        assert split.pipeline * split.chunks_per_rank <= num_blocks
        assert num_heads % (split.tensor * split.context) == 0
    # By brute force: axes that divide, within a node, with a batch of whole micro-batches of one.
    found = {(j.split.pipeline, j.split.tensor, j.split.context) for j in jobs if j.batch.micro_batch == 1}
    for pipeline, tensor, context in product(divisors(world), divisors(node), divisors(node)):
        replicas, rest = divmod(world, pipeline * tensor * context)
        legal = (
            not rest
            and tensor * context <= node
            and pipeline <= num_blocks
            and num_heads % (tensor * context) == 0
            and batch % replicas == 0
            and (pipeline == 1 or batch // replicas >= pipeline // 2)
        )
        assert ((pipeline, tensor, context) in found) == legal


def test_the_published_layout_of_llama_3_is_among_the_best_few() -> None:
    result = search(LLAMA3, [Limits(world_size=WORLD, global_batch=BATCH)])
    axes = [(c.job.split.tensor, c.job.split.pipeline, c.job.split.replicas) for c in result.best(5)]
    assert (8, 16, 128) in axes, axes  # arXiv:2407.21783, table 4: TP 8, CP 1, PP 16, DP 128


def test_all_that_is_ranked_fits_and_all_is_accounted_for() -> None:
    result = search(MAI1, [Limits(world_size=15_000, global_batch=8000)])
    assert all(verdict(candidate.job).fit is not Fit.does_not_fit for candidate in result.ranked)
    prices = [candidate.device_seconds_per_token for candidate in result.ranked]
    assert prices == sorted(prices) or max(b / a for a, b in zip(prices[1:], prices, strict=False)) < 1 + 1e-6
    refusals = Refusals()
    legal = len(list(legal_layouts(MAI1, Limits(world_size=15_000, global_batch=8000), refusals)))
    assert result.num_layouts == legal + refusals.counts.total()
    assert {"the global batch is no multiple of replicas x micro-batch"} <= {reason for reason, _, _ in result.refused}
    for candidate in result.ranked:
        assert candidate.runs_today == (candidate.job.split.tensor == 1)
    assert {candidate.runs_today for candidate in result.ranked} == {True, False}


def test_the_front_is_what_no_other_beats() -> None:
    result = search(LLAMA3, [Limits(world_size=world, global_batch=BATCH) for world in (8192, WORLD)])
    front = pareto(result.ranked)

    def cost(candidate: object) -> tuple[float, float, float]:
        c = candidate
        return (1 / c.tokens_per_second, c.verdict.needed_bytes, c.device_seconds_per_token)  # type: ignore[attr-defined]

    for candidate in result.ranked:
        beaten = any(
            all(a <= b for a, b in zip(cost(other), cost(candidate), strict=True)) and cost(other) != cost(candidate)
            for other in result.ranked
        )
        if candidate in front:
            assert not beaten
        elif not beaten:
            assert cost(candidate) in {cost(other) for other in front}
    assert {candidate.job.split.world_size for candidate in front} == {8192, WORLD}


def test_only_ours_is_what_an_engine_runs() -> None:
    smaller = job_of(compose(["experiment=llama3_405b", "model=llama3_70b"], to_plan=True), "pretrain")
    result = search(smaller, [Limits(world_size=1024, global_batch=BATCH, only_ours=True)])
    assert result.ranked
    assert all(candidate.runs_today and runs_today(candidate.job) for candidate in result.ranked)
    with pytest.raises(StopIteration):
        next(c for c in result.ranked if c.job.split.tensor > 1)
