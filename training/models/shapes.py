"""Names and shapes of a model's parameters, without their values."""

import torch

from training.config.schema import ModelConfig
from training.models.decoder import Decoder, decoder_layers


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by canonical name, in running order; a tied one stands there once."""
    with torch.device("meta"):
        decoder = Decoder(decoder_layers(config, seed=0))
    return {name: tuple(parameter.shape) for name, parameter in decoder.canonical_parameters()}
