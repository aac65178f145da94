"""Names and shapes of what a model's weights are, without their values."""

import torch

from training.config.schema import ModelConfig
from training.models.decoder import Decoder, decoder_layers


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by canonical name, in running order; a tied one stands there once.

    The biases of routers are among them (`router_bias_name`): no gradient moves them, but the model is not whole
    without.
    """
    with torch.device("meta"):
        decoder = Decoder(decoder_layers(config, seed=0))
    biases = {
        f"{block}.mlp.gate.weight": (router_bias_name(block), tuple(router.bias_E.shape))
        for block, router in decoder.routers()
        if router.bias_E is not None
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in decoder.canonical_parameters():
        shapes[name] = tuple(parameter.shape)
        if name in biases:
            bias, shape = biases[name]
            shapes[bias] = shape
    return shapes


def router_bias_name(block: str) -> str:
    """Return the canonical name of the bias of a block's router (`Router.bias_E`)."""
    return f"{block}.mlp.gate.bias"
