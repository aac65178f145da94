"""Exported weights in transformers against our own decoder. Both models are held whole, one after the other."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint.manifest import WEIGHT
from training.checkpoint.tensor_stream import ReadInto
from training.config.schema import ModelConfig
from training.errors import ConfigError, CorruptCheckpoint
from training.models.decoder import Decoder, decoder_layers
from training.models.shapes import router_bias_name

TOLERANCE = 1e-4
"""Largest difference of a logit, in fp32."""
_NUM_TOKENS = 16


def has_transformers() -> bool:
    """Return whether transformers is installed."""
    return find_spec("transformers") is not None


@torch.no_grad()
def check_logits(directory: Path, model: ModelConfig, read_into: ReadInto) -> float:
    """Return the largest difference between logits of transformers and ours, over a few tokens, in fp32.

    Args:
        directory: exported weights.
        model: the model.
        read_into: gives our decoder the weights, as they were exported.

    Raises:
        ConfigError: transformers is not installed.
        CorruptCheckpoint: transformers computes something else, or does not find all weights.
    """
    if not has_transformers():
        reason = "transformers is not installed here"
        raise ConfigError("--check-logits", "true", reason, "pip install transformers, or give --no-check-logits")
    num_tokens = min(_NUM_TOKENS, model.max_sequence_length)
    ids_BT = torch.randint(0, model.vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0))
    difference = (_ours(model, read_into, ids_BT) - _theirs(directory, ids_BT)).abs().max().item()
    if not difference <= TOLERANCE:  # nan is no small difference
        raise CorruptCheckpoint(
            f"{directory}: transformers' logits differ from ours by {difference:.3g}, {TOLERANCE:g} is allowed\n"
            "  -> nothing was exported; this is a bug of one of the two"
        )
    return difference


def _ours(model: ModelConfig, read_into: ReadInto, ids_BT: Tensor) -> Tensor:
    with torch.device("meta"):
        decoder = Decoder(decoder_layers(model, seed=0))
    decoder = decoder.to_empty(device="cpu").eval()
    for name, parameter in decoder.canonical_parameters():
        read_into(f"{WEIGHT}/{name}", 0, parameter.detach().numpy().data)
    for block, router in decoder.routers():
        if router.bias_E is not None:
            read_into(f"{WEIGHT}/{router_bias_name(block)}", 0, router.bias_E.numpy().data)
    return decoder(ids_BT)


def _theirs(directory: Path, ids_BT: Tensor) -> Tensor:
    # Not at the top: it is large, and export works on machines without it.
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    model, info = loaded
    problems = {kind: sorted(keys) for kind, keys in info.items() if keys}
    if problems:
        raise CorruptCheckpoint(f"{directory}: transformers does not load it whole: {problems}")
    return model.eval()(ids_BT).logits
