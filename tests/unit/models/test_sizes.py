from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.models.configs import KINDS, model
from training.config.load import compose
from training.config.model_schema import ExpertsConfig, ModelConfig
from training.models.decoder import Decoder, decoder_layers
from training.models.loss import summed_cross_entropy
from training.models.sizes import layer_costs, num_active_parameters, num_parameters, training_flops_per_token

PRESETS = sorted((Path(__file__).parents[3] / "conf" / "model").glob("*.yaml"))
PUBLISHED = {
    "smollm2_135m": 134_515_008,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
}
"""Parameters as the models' own safetensors indexes count them."""


EXPERTS = [path for path in PRESETS if "experts:" in path.read_text()]
DENSE = [path for path in PRESETS if path not in EXPERTS]


def preset(path: Path) -> ModelConfig:
    return compose([f"model={path.stem}", "data=smoke"], to_plan=True).model


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_counts_the_built_model(kind: str) -> None:
    decoder = Decoder(decoder_layers(KINDS[kind], seed=0))
    assert num_parameters(KINDS[kind]) == sum(p.numel() for p in decoder.parameters())


@pytest.mark.parametrize("path", DENSE, ids=lambda path: path.stem)
def test_the_closed_form_counts_every_dense_preset(path: Path) -> None:
    config = preset(path)
    with torch.device("meta"):
        decoder = Decoder(decoder_layers(config, seed=0))
    assert num_parameters(config) == sum(p.numel() for p in decoder.parameters())
    assert num_parameters(config) == PUBLISHED.get(path.stem, num_parameters(config))


def test_the_closed_form_counts_mixtral() -> None:
    # mistralai/Mixtral-8x7B-v0.1: 46,702,792,704 parameters by its safetensors index; 12.9 billion active
    # (arXiv:2401.04088, table 1). It is our architecture, but for the order of softmax and top-k.
    experts = ExpertsConfig(num_experts=8, experts_per_token=2, expert_ffn_size=14336)
    mixtral = model(
        vocab_size=32000, hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_size=14336, experts=experts
    )
    assert num_parameters(mixtral) == 46_702_792_704
    assert num_active_parameters(mixtral) == pytest.approx(12.9e9, rel=0.005)
    dense_first = replace(mixtral, experts=replace(experts, num_dense_layers=3, num_shared_experts=1))
    three_dense = num_parameters(mixtral) - 3 * (7 * 3 * 4096 * 14336 + 8 * 4096) + 29 * 3 * 4096 * 14336
    assert num_parameters(dense_first) == three_dense


@pytest.mark.parametrize("path", EXPERTS, ids=lambda path: path.stem)
def test_models_with_experts_have_the_size_of_their_class(path: Path) -> None:
    config = preset(path)
    assert num_parameters(config) == pytest.approx({"mai1_500b": 500e9, "gpt4o_1800b": 1800e9}[path.stem], rel=0.02)
    flops = training_flops_per_token(config, 8192)
    attention = 3 * 2 * config.hidden_size * 8192 * config.num_layers
    matrices = num_active_parameters(config) - config.vocab_size * config.hidden_size
    norms = (2 * config.num_layers + 1) * config.hidden_size
    assert flops == pytest.approx(6 * (matrices - norms) + attention)


@pytest.mark.parametrize("kind", KINDS)
def test_each_layers_cost_stands_at_the_layers_place(kind: str) -> None:
    layers, costs = decoder_layers(KINDS[kind], seed=0), layer_costs(KINDS[kind], 32)
    assert len(layers) == len(costs)
    for layer, cost in zip(layers, costs, strict=True):
        assert layer.name.startswith(cost.name)
        owned = 0 if layer.tied_to else sum(p.numel() for p in layer.build().parameters())
        assert cost.num_parameters == owned


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_that_torch_counts_but_for_the_causal_half(kind: str) -> None:
    config, batch, length = KINDS[kind], 2, 32
    decoder = Decoder(decoder_layers(config, seed=0))
    ids = torch.zeros(batch, length, dtype=torch.int64)
    # The fused attention on CPU is not counted; the plain one is, over all T positions, where we count T/2.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        summed_cross_entropy(decoder(ids), ids).backward()
    masked_half = 3 * config.num_layers * 2 * 2 * config.hidden_size * length / 2
    counted = counter.get_total_flops() / (batch * length)
    assert counted - masked_half == training_flops_per_token(config, length)


def test_twice_the_sequence_costs_more_per_token_only_in_attention() -> None:
    config = model()
    difference = training_flops_per_token(config, 64) - training_flops_per_token(config, 32)
    assert difference == 3 * config.num_layers * 2 * 2 * config.hidden_size * 32 / 2
