from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.planner.jobs import LLAMA_8B, MOE, job
from training.planner.constants import CONSTANTS
from training.planner.flops import Counted, model_flops
from training.planner.job import Job, NumberFormat
from training.planner.operators import block_parameters, block_work, head_work, hidden_bytes, table_parameters


def rank_flops(plan: Job) -> float:
    """FLOPs of forward and backward of one rank without a pipeline, from its operators."""
    software = CONSTANTS.software[plan.software]
    experts = plan.model.experts
    num_dense = plan.model.num_blocks if experts is None else experts.num_dense_blocks
    works = [(block_work(plan, software, is_dense=True), num_dense)]
    works += [(block_work(plan, software, is_dense=False), plan.model.num_blocks - num_dense)] if experts else []
    works += [(head_work(plan, software), 1)]
    total = 0.0
    for work, count in works:
        backward = sum(product.flops for gemm in work.gemms for product in gemm.backward())
        attention = 3 * work.attention.full_flops if work.attention else 0.0
        total += count * (sum(gemm.flops for gemm in work.gemms) + backward + attention)
    return plan.batch.accumulation * total


@given(
    tensor=st.sampled_from([1, 2, 4, 8]),
    context=st.sampled_from([1, 2, 4]),
    replicas=st.integers(1, 4),
    micro_batch=st.integers(1, 4),
    number_format=st.sampled_from([NumberFormat.bf16, NumberFormat.fp8]),
    shards=st.booleans(),
)
def test_all_ranks_together_compute_the_closed_form(
    tensor: int, context: int, replicas: int, micro_batch: int, number_format: NumberFormat, shards: bool
) -> None:
    plan = job(
        tensor=tensor,
        context=context,
        replicas=replicas,
        micro_batch=micro_batch,
        number_format=number_format,
        tensor_shards_sequence=shards,
    )
    assert rank_flops(plan) * plan.split.world_size == pytest.approx(model_flops(plan, Counted.full), rel=1e-12)


@given(expert=st.sampled_from([1, 2, 8]), replicas=st.sampled_from([8, 16]), tensor=st.sampled_from([1, 2]))
def test_experts_compute_the_closed_form_wherever_they_are(expert: int, replicas: int, tensor: int) -> None:
    plan = job(model=MOE, expert=expert, replicas=replicas, tensor=tensor)
    # The router is computed on each rank's share of the tokens.
    assert rank_flops(plan) * plan.split.world_size == pytest.approx(model_flops(plan, Counted.full), rel=1e-12)


@given(tensor=st.sampled_from([1, 2, 4, 8]))
def test_parameters_of_all_ranks_are_those_of_the_model(tensor: int) -> None:
    plan = job(tensor=tensor)
    block, _ = block_parameters(plan, is_dense=True)
    norms = 2 * LLAMA_8B.hidden_size
    whole = LLAMA_8B.num_blocks * ((block - norms) * tensor + norms) + 2 * table_parameters(plan) * tensor
    assert whole == 8_030_261_248 - 4096  # Llama 3.1 8B without the final norm


def test_experts_are_shared_among_expert_parallel_ranks() -> None:
    alone, spread = (block_parameters(job(model=MOE, replicas=8, expert=n), is_dense=False) for n in (1, 8))
    assert spread[0] == alone[0]
    assert spread[1] == alone[1] / 8
    assert alone[1] == 64 * 3 * 4096 * 1024


def test_fp8_casts_cost_traffic_and_the_head_stays_in_bf16() -> None:
    software = CONSTANTS.software["megatron"]
    bf16, fp8 = (job(number_format=kind) for kind in (NumberFormat.bf16, NumberFormat.fp8))
    plain, cast = (block_work(plan, software, is_dense=True) for plan in (bf16, fp8))
    assert cast.forward_bytes > plain.forward_bytes
    assert {gemm.number_format for gemm in cast.gemms} == {NumberFormat.fp8}
    assert {gemm.number_format for gemm in head_work(fp8, software).gemms} == {NumberFormat.bf16}


def test_sharded_tokens_spare_traffic_between_tensor_parallel_regions() -> None:
    software = CONSTANTS.software["megatron"]
    sharded, whole = (
        block_work(job(tensor=8, tensor_shards_sequence=flag), software, is_dense=True) for flag in (True, False)
    )
    assert sharded.forward_bytes < whole.forward_bytes
    assert sum(gemm.flops for gemm in sharded.gemms) == sum(gemm.flops for gemm in whole.gemms)


def test_hidden_states_are_those_of_a_micro_batch() -> None:
    assert hidden_bytes(job(micro_batch=2)) == 2 * 4096 * 4096 * 2
    assert hidden_bytes(job(context=4)) == 4096 * 4096 * 2 / 4
    untied = replace(LLAMA_8B, tied_embeddings=True)
    assert hidden_bytes(job(model=untied)) == 4096 * 4096 * 2
