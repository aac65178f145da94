import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.planner.jobs import LLAMA_8B, MOE, job
from training.config.model_schema import ModelConfig
from training.errors import ConfigError
from training.models.sizes import training_flops_per_token
from training.planner.flops import (
    Counted,
    hardware_flops,
    hfu,
    mfu,
    model_flops,
    published_flops,
)
from training.planner.job import Recompute
from training.planner.published_split import runs_of


@given(length=st.sampled_from([512, 4096, 131072]), replicas=st.integers(1, 8))
def test_causal_flops_are_our_own_convention(length: int, replicas: int) -> None:
    plan = job(sequence_length=length, replicas=replicas)
    config = ModelConfig(
        vocab_size=128256,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        ffn_size=14336,
        max_sequence_length=length,
    )
    assert model_flops(plan) == pytest.approx(plan.tokens_per_step * training_flops_per_token(config, length))


def test_conventions_differ_as_their_names_say() -> None:
    plain, full = job(), job(recompute=Recompute.full)
    causal, whole = model_flops(plain), model_flops(plain, Counted.full)
    attention = 3 * 4 * 32 * 4096 * 4096 * plain.tokens_per_step
    assert whole - causal == pytest.approx(attention / 2)
    assert hardware_flops(plain) == causal
    head = 6 * 128256 * 4096 * plain.tokens_per_step
    assert hardware_flops(full) - causal == pytest.approx((causal - head) / 3)
    attention_again = hardware_flops(job(recompute=Recompute.attention)) - causal
    assert attention_again == pytest.approx(attention / 6)
    assert mfu(full, 10.0) < hfu(full, 10.0)
    assert mfu(plain, 10.0) == pytest.approx(causal / (10 * 989e12))


def test_experts_count_what_a_token_passes() -> None:
    dense, experts = model_flops(job(model=LLAMA_8B)), model_flops(job(model=MOE))
    routed = 64 * 4096 + 5 * 3 * 4096 * 1024 - 3 * 4096 * 14336
    assert experts - dense == pytest.approx(6 * 30 * routed * job().tokens_per_step)


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(ConfigError, match="6N_mm_full_attn"):
        published_flops(job(), "guess")


def test_published_throughputs_are_reproduced_by_the_conventions_they_name() -> None:
    checked, off = 0, []
    for run in runs_of()[0]:
        if run.step_seconds and run.row["flops_convention"]:
            flops = published_flops(run.job, run.row["flops_convention"])
            reached = flops / run.step_seconds / run.job.split.world_size / 1e12
            checked += 1
            # Throughputs are published to three digits, or truncated; one source's count is not reproducible.
            if abs(reached / float(run.row["tflops_per_gpu"]) - 1) > 0.035 and "GPT-OSS" not in run.name:
                off.append(run.name)
    assert checked > 280
    assert not off
