from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.models.configs import ALL_KINDS, model
from training.config.load import compose
from training.config.model_schema import ModelConfig
from training.models.decoder import Decoder, decoder_layers
from training.models.experts import loop_of_products
from training.models.loss import summed_cross_entropy
from training.models.sizes import (
    head_sizes,
    layer_costs,
    num_active_parameters,
    num_parameters,
    training_flops_per_token,
)

PRESETS = sorted((Path(__file__).parents[3] / "conf" / "model").glob("*.yaml"))
PUBLISHED: dict[str, tuple[float, float]] = {
    # the models' own safetensors indexes count every parameter
    "smollm2_135m": (134_515_008, 0.0),
    "llama3_8b": (8_030_261_248, 0.0),
    "llama3_70b": (70_553_706_496, 0.0),
    "llama3_405b": (405_853_388_800, 0.0),
    "mixtral_8x7b": (46_702_792_704, 0.0),
    "qwen3_30b_a3b": (30_532_122_624, 0.0),
    # arXiv:2412.19437, abstract: 671B; without the block that predicts a second token
    "deepseek_v3_671b": (671e9, 0.005),
    # the press, in round numbers: "around 500 billion" (The Information, May 2024); SemiAnalysis, July 2023
    "mai1_500b": (500e9, 0.005),
    "gpt4o_1800b": (1800e9, 0.005),
    # our own: what the files say of themselves
    "coder_long_context": (71e9, 0.005),
    "tiny": (4e6, 0.005),
    "tiny_moe": (6.0e6, 0.01),
}
"""Preset -> parameters by its public source, and how far off it may be, relative."""

PUBLISHED_ACTIVE = {"mixtral_8x7b": 12.9e9, "qwen3_30b_a3b": 3.3e9, "deepseek_v3_671b": 37e9, "tiny_moe": 3.6e6}
"""Preset -> parameters that a token meets, to two digits: arXiv:2401.04088, 2505.09388, 2412.19437; our own."""


def preset(path: Path) -> ModelConfig:
    return compose([f"model={path.stem}", "data=smoke"], to_plan=True).model


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_closed_form_counts_the_built_model(kind: str) -> None:
    decoder = Decoder(decoder_layers(ALL_KINDS[kind], seed=0))
    assert num_parameters(ALL_KINDS[kind]) == sum(p.numel() for p in decoder.parameters())


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_closed_form_counts_what_a_token_meets(kind: str) -> None:
    config = ALL_KINDS[kind]
    decoder = Decoder(decoder_layers(config, seed=0))
    decoder(torch.zeros(1, 1, dtype=torch.int64)).sum().backward()  # one token gives its own experts a gradient
    met = 0
    for name, parameter in decoder.canonical_parameters():
        assert parameter.grad is not None
        experts = parameter.grad.flatten(1).any(1).float().mean().item() if ".experts." in name else 1
        met += round(parameter.numel() * experts)
    assert num_active_parameters(config) == met


@pytest.mark.timeout(30)
def test_every_preset_builds_without_storage_and_has_the_size_of_its_public_source() -> None:
    assert {path.stem for path in PRESETS} == PUBLISHED.keys()
    for path in PRESETS:
        config = preset(path)
        with torch.device("meta"):
            decoder = Decoder(decoder_layers(config, seed=0))
        built = sum(p.numel() for p in decoder.parameters())
        assert num_parameters(config) == built, path.stem
        published, tolerance = PUBLISHED[path.stem]
        assert built == pytest.approx(published, rel=tolerance, abs=0), path.stem
        if path.stem in PUBLISHED_ACTIVE:
            assert num_active_parameters(config) == pytest.approx(PUBLISHED_ACTIVE[path.stem], rel=0.02), path.stem


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_each_layers_cost_stands_at_the_layers_place(kind: str) -> None:
    layers, costs = decoder_layers(ALL_KINDS[kind], seed=0), layer_costs(ALL_KINDS[kind], 32)
    assert len(layers) == len(costs)
    for layer, cost in zip(layers, costs, strict=True):
        assert layer.name.startswith(cost.name)
        owned = 0 if layer.tied_to else sum(p.numel() for p in layer.build().parameters())
        assert cost.num_parameters == owned


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_flops_are_those_that_torch_counts_but_for_the_causal_half(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, batch, length = ALL_KINDS[kind], 2, 32
    decoder = Decoder(decoder_layers(config, seed=0))
    ids = torch.zeros(batch, length, dtype=torch.int64)
    # torch counts no grouped products, so experts run one after the other; a test holds that the two are the same.
    monkeypatch.setattr(
        "training.models.experts._products", lambda counts, _: partial(loop_of_products, counts_X=counts)
    )
    # The fused attention on CPU is not counted; the plain one is, over all T positions, where we count T/2, and with
    # values padded to the keys' width.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        summed_cross_entropy(decoder(ids), ids).backward()
    key_size, value_size = head_sizes(config)
    products = 3 * config.num_layers * 2 * config.num_heads * length
    more = products * (key_size + max(key_size, value_size)) - products * (key_size + value_size) / 2
    counted = counter.get_total_flops() / (batch * length)
    assert counted - more == training_flops_per_token(config, length)


def test_twice_the_sequence_costs_more_per_token_only_in_attention() -> None:
    config = model()
    difference = training_flops_per_token(config, 64) - training_flops_per_token(config, 32)
    assert difference == 3 * config.num_layers * 2 * 2 * config.hidden_size * 32 / 2
