from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.models.configs import KINDS, model
from training.config.load import compose
from training.config.schema import ModelConfig
from training.models.decoder import Decoder, decoder_layers
from training.models.loss import summed_cross_entropy
from training.models.sizes import layer_costs, num_parameters, training_flops_per_token

PRESETS = sorted((Path(__file__).parents[3] / "conf" / "model").glob("*.yaml"))
PUBLISHED = {
    "smollm2_135m": 134_515_008,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
}
"""Parameters as the models' own safetensors indexes count them."""


def preset(path: Path) -> ModelConfig:
    return compose([f"model={path.stem}", "data=smoke"]).model


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_counts_the_built_model(kind: str) -> None:
    decoder = Decoder(decoder_layers(KINDS[kind], seed=0))
    assert num_parameters(KINDS[kind]) == sum(p.numel() for p in decoder.parameters())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_the_closed_form_counts_every_preset(path: Path) -> None:
    config = preset(path)
    with torch.device("meta"):
        decoder = Decoder(decoder_layers(config, seed=0))
    assert num_parameters(config) == sum(p.numel() for p in decoder.parameters())
    assert num_parameters(config) == PUBLISHED.get(path.stem, num_parameters(config))


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
