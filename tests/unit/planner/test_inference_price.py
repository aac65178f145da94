from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.load import compose
from training.errors import ConfigError
from training.models.sizes import num_parameters, training_flops_per_token
from training.planner.from_config import shape_of
from training.planner.inference_price import (
    InferencePrice,
    Serving,
    cache_bytes_per_token,
    forward_flops_per_token,
    inference_price,
    parameters,
    weights_read,
)
from training.planner.job import Device, Experts, ModelShape, NumberFormat

LLAMA_405B = ModelShape(
    num_blocks=126,
    hidden_size=16_384,
    num_heads=128,
    num_kv_heads=8,
    head_size=128,
    ffn_size=53_248,
    ffn_matrices=3,
    vocab_size=128_256,
)
MIXTRAL_8X7B = ModelShape(
    num_blocks=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    ffn_size=14_336,
    ffn_matrices=3,
    vocab_size=32_000,
    experts=Experts(num_experts=8, experts_per_token=2, expert_ffn_size=14_336),
)
H100 = Device(
    name="H100 SXM",
    peak_flops={NumberFormat.bf16: 989e12, NumberFormat.fp8: 1979e12},
    memory_bytes=80e9,
    memory_bandwidth=3.35e12,
)
SERVING = Serving(num_devices=16, batch_sequences=32, context_tokens=2048)


def serve(serving: Serving = SERVING, model: ModelShape = LLAMA_405B) -> InferencePrice:
    return inference_price(model, H100, serving, price_per_device_hour=2.0)


@pytest.mark.parametrize(
    ("model", "billions"), [(LLAMA_405B, 405.85), (MIXTRAL_8X7B, 46.70)], ids=["llama3_405b", "mixtral_8x7b"]
)
def test_parameters_are_the_published_ones(model: ModelShape, billions: float) -> None:
    # The models' cards: 405.85 and 46.7 billion; norms are left out.
    assert parameters(model) / 1e9 == pytest.approx(billions, rel=0.0005)


def test_a_token_takes_two_flops_for_each_active_parameter() -> None:
    # 12.9 billion are active (arXiv:2401.04088), of which the embedding is only looked up.
    flops = forward_flops_per_token(MIXTRAL_8X7B, attended_tokens=0)
    assert flops == pytest.approx(2 * (12.88e9 - 32_000 * 4096), rel=0.001)


def test_keys_and_values_of_a_token_take_half_a_megabyte() -> None:
    # 2 x 126 blocks x 8 heads x 128 x 2 bytes.
    assert cache_bytes_per_token(LLAMA_405B, NumberFormat.bf16) == 516_096


PRESETS = sorted((Path(__file__).parents[3] / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_has_the_parameters_and_flops_of_the_model_that_is_trained(path: Path) -> None:
    config = compose([f"model={path.stem}", "data=smoke"], to_plan=True).model
    latent, of_attention = config.latent_attention, 2 * config.attention_head_size * config.qk_norm
    if latent is not None:
        of_attention = (latent.query_rank or 0) + latent.kv_rank
    shape, norms = shape_of(config), (2 * config.num_layers + 1) * config.hidden_size + config.num_layers * of_attention
    assert parameters(shape) == num_parameters(config) - norms
    # Causal: each of 4,096 positions meets half of them on average.
    assert forward_flops_per_token(shape, 2048) == pytest.approx(training_flops_per_token(config, 4096) / 3)


@given(st.integers(1, 512))
def test_a_batch_reads_experts_that_any_of_its_tokens_meets(batch: int) -> None:
    embedding = 32_000 * 4096
    one, some = weights_read(MIXTRAL_8X7B, 1), weights_read(MIXTRAL_8X7B, batch)
    assert one <= some <= parameters(MIXTRAL_8X7B) - embedding
    assert one == pytest.approx(forward_flops_per_token(MIXTRAL_8X7B, 0) / 2)


def test_a_small_batch_is_bound_by_memory_and_costs_more_a_token() -> None:
    few, many = serve(replace(SERVING, batch_sequences=1)), serve(replace(SERVING, batch_sequences=64))
    assert few.output_bound == "memory"
    # Alone, a token waits for all weights: 811 GB but for the embedding, at 0.6 of 16 x 3.35 TB/s.
    read = 2 * (405.85e9 - 128_256 * 16_384) + 2048 * 516_096
    assert 1 / few.output_tokens_per_second == pytest.approx(read / (0.6 * 16 * 3.35e12), rel=0.001)
    assert many.price_per_million_output_tokens < few.price_per_million_output_tokens / 30


def test_a_large_batch_of_short_texts_is_bound_by_arithmetic() -> None:
    priced = serve(Serving(num_devices=16, batch_sequences=4000, context_tokens=100, bandwidth_share=1.0))
    assert priced.output_bound == "arithmetic"


def test_a_prompt_costs_its_flops() -> None:
    priced = serve()
    seconds = forward_flops_per_token(LLAMA_405B, 1024) / (16 * 989e12 * 0.4)
    assert priced.price_per_million_prompt_tokens == pytest.approx(1e6 * seconds * 16 * 2.0 / 3600)
    assert priced.prompt_tokens_per_second == pytest.approx(1 / seconds)


@given(st.integers(1, 64), st.integers(1, 4096))
def test_longer_contexts_never_cost_less(batch: int, context: int) -> None:
    short = serve(replace(SERVING, batch_sequences=batch, context_tokens=context))
    long = serve(replace(SERVING, batch_sequences=batch, context_tokens=context + 1000))
    assert long.price_per_million_output_tokens > short.price_per_million_output_tokens
    assert long.price_per_million_prompt_tokens > short.price_per_million_prompt_tokens


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(ConfigError, match=r"serving\.num_devices=8: weights of 812 GB.*\n.*num_devices=11 or more"):
        serve(replace(SERVING, num_devices=8))
    with pytest.raises(ConfigError, match=r"serving\.batch_sequences=10000: .*\n.*batch_sequences=\d+ or more devices"):
        serve(replace(SERVING, batch_sequences=10_000))
    with pytest.raises(ConfigError, match=r"serving\.number_format=fp32: .*\n.*bf16, fp8"):
        serve(replace(SERVING, number_format=NumberFormat.fp32))
