from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.planner.jobs import LLAMA_8B, MOE, job
from training.planner.constants import CONSTANTS, Constants
from training.planner.job import Recompute
from training.planner.software import SOFTWARE
from training.planner.traffic import traffic

PARAMETERS = 8_030_261_248 - 4096  # without the final norm
HIDDEN = 4096 * 4096 * 2


@given(replicas=st.integers(2, 64))
def test_zero_3_gathers_twice_and_reduces_once_for_every_micro_batch(replicas: int) -> None:
    plan = job(software="torchtitan_compile", zero_stage=3, replicas=replicas)
    share = (replicas - 1) / replicas
    ours = SOFTWARE["torchtitan_compile"]
    assert traffic(plan).data_bytes == pytest.approx(
        8 * (2 * ours.gather_bytes + ours.reduce_bytes) * PARAMETERS * share
    )


@given(replicas=st.integers(2, 64))
def test_below_zero_3_a_step_costs_an_all_reduce(replicas: int) -> None:
    share = (replicas - 1) / replicas
    reduce_bytes = SOFTWARE["megatron"].reduce_bytes
    assert traffic(job(zero_stage=0, replicas=replicas)).data_bytes == pytest.approx(
        2 * reduce_bytes * PARAMETERS * share
    )
    assert traffic(job(zero_stage=1, replicas=replicas)).data_bytes == pytest.approx(
        (reduce_bytes + 2) * PARAMETERS * share
    )


def test_a_rank_alone_sends_nothing() -> None:
    assert traffic(job()).total_bytes == 0


def test_tensor_parallel_traffic_is_eight_exchanges_and_two_gathers_a_block() -> None:
    # arXiv:2205.05198, section 4.2.2: all-gather and reduce-scatter for each all-reduce, and the gathers of backward.
    sharded = traffic(job(tensor=8)).tensor_bytes
    assert sharded == pytest.approx(8 * 32 * (8 + 2) * HIDDEN * 7 / 8)
    whole = traffic(job(tensor=8, tensor_shards_sequence=False)).tensor_bytes
    assert whole == pytest.approx(8 * 32 * 8 * HIDDEN * 7 / 8)
    again = traffic(job(tensor=8, tensor_shards_sequence=False, recompute=Recompute.full)).tensor_bytes
    assert again == pytest.approx(1.5 * whole)


def test_pipeline_traffic_is_hidden_states_both_ways() -> None:
    assert traffic(job(pipeline=2)).pipeline_bytes == 8 * HIDDEN
    assert traffic(job(pipeline=4)).pipeline_bytes == 2 * 8 * HIDDEN
    assert traffic(job(pipeline=4, chunks_per_rank=2)).pipeline_bytes == 4 * 8 * HIDDEN
    assert traffic(job(pipeline=4, tensor=8)).pipeline_bytes == 2 * 8 * HIDDEN / 8


def test_keys_and_values_go_round_a_context_group() -> None:
    keys = 1024 * 2 * 8 * 128 * 2
    assert traffic(job(context=4, context_exchange="keys")).context_bytes == pytest.approx(8 * 32 * 3 * keys * 3)


def test_heads_go_there_and_back() -> None:
    # arXiv:2309.14509, section 3.2: four all-to-alls forward, of queries, keys, values and the result.
    sent = 1024 * (2 * 4096 + 2 * 1024) * 2 * 3 / 4
    assert traffic(job(context=4, context_exchange="heads")).context_bytes == pytest.approx(8 * 32 * 2 * sent)


def test_each_copy_of_a_token_goes_to_its_expert_and_back_both_ways() -> None:
    assert traffic(job(model=MOE, replicas=8, expert=8)).expert_bytes == pytest.approx(8 * 30 * 4 * 4 * HIDDEN * 7 / 8)


def test_gathering_in_a_smaller_group_sends_less() -> None:
    near, far = (traffic(job(software="autarky", zero_stage=3, replicas=64, zero3_group=group)) for group in (8, None))
    assert near.data_bytes < far.data_bytes


def test_what_a_program_reduces_in_is_its_profiles() -> None:
    constants = Constants(
        CONSTANTS.efficiency, CONSTANTS.kernels, {"megatron": replace(SOFTWARE["megatron"], reduce_bytes=4.0)}
    )
    plan = job(zero_stage=0, replicas=8, model=LLAMA_8B)
    assert traffic(plan, constants).data_bytes == 2 * traffic(plan).data_bytes
