"""Rotary position embedding (RoFormer, arXiv:2104.09864) with Llama-3 frequency scaling.

Pairs are (i, i + head_size/2), the layout of Hugging Face's Llama weights, not the interleaved one of the paper.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from training.config.model_schema import ModelConfig, RopeScaling


def inverse_frequencies(theta: float, head_size: int, scaling: RopeScaling | None) -> Tensor:
    """Return the angular frequency of each pair in radians per token, float32 [head_size/2].

    Scaling follows Llama 3.1 (`rope_type: llama3`, transformers 5.x, modeling_rope_utils.py): long wavelengths are
    stretched by `factor`, short ones kept, those between are interpolated.
    """
    frequencies = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    if scaling is not None:
        wavelengths = 2 * math.pi / frequencies
        ratio = scaling.original_max_sequence_length / wavelengths
        keep = (ratio - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = keep.clamp(0.0, 1.0)
        frequencies = frequencies * (keep + (1 - keep) / scaling.factor)
    return frequencies.float()


@lru_cache(maxsize=32)
def _tables(
    theta: float, head_size: int, scaling: RopeScaling | None, num_positions: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    angles = torch.outer(
        torch.arange(num_positions, dtype=torch.float32), inverse_frequencies(theta, head_size, scaling)
    )
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(device), angles.sin().to(device)


def rotary_tables(config: ModelConfig, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin tables, float32 [num_positions, head_size].

    They are computed, not stored in the module, so that no cast, shard or checkpoint ever touches them.
    """
    head_size = config.hidden_size // config.num_heads
    return _tables(config.rope_theta, head_size, config.rope_scaling, num_positions, device)


def rotate(x_BNTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x with every pair turned by its position's angle; same shape and dtype as x.

    Args:
        x_BNTH: queries or keys.
        cos: of the angles, [T, H]; [B, 1, T, H] where sequences stand at different positions.
        sin: the same.
    """
    first, second = x_BNTH.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x_BNTH.float() * cos + turned * sin).to(x_BNTH.dtype)
