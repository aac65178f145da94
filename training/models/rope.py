"""Rotary position embedding (RoFormer, arXiv:2104.09864) with Llama-3 or YaRN frequency scaling.

Pairs are (i, i + head_size/2), the layout of Hugging Face's Llama weights, not the interleaved one of the paper.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from training.config.model_schema import ModelConfig, RopeScaling, YarnScaling


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


def yarn_frequencies(theta: float, head_size: int, scaling: YarnScaling) -> Tensor:
    """Return the same by YaRN (arXiv:2309.00071, section 3.2; `rope_type: yarn`, transformers 5.x, the same file).

    Pairs that turn more than beta_fast times within the original context are kept, those that turn less than beta_slow
    times stretched by `factor`; between them the share grows evenly with the pair's number, cut to whole ones.
    """
    pairs = torch.arange(0, head_size, 2, dtype=torch.float64) / head_size
    kept = theta**-pairs

    def pair_that_turns(times: float) -> float:
        wavelength = scaling.original_max_sequence_length / (times * 2 * math.pi)
        return head_size * math.log(wavelength) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), head_size - 1)
    stretched_share = (torch.arange(head_size // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    stretched_share = stretched_share.clamp(0.0, 1.0)
    return (kept * (1 - stretched_share) + kept / scaling.factor * stretched_share).float()


def yarn_amplitude(scaling: YarnScaling) -> float:
    """Return what cosines and sines are multiplied by: 0.1 ln(factor) + 1, or the ratio that DeepSeek's keys give."""

    def amplitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return amplitude(scaling.mscale) / amplitude(scaling.mscale_all_dim)
    return amplitude(1.0)


@lru_cache(maxsize=32)
def _tables(
    theta: float, head_size: int, scaling: RopeScaling | YarnScaling | None, num_positions: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    is_yarn = isinstance(scaling, YarnScaling)
    frequencies = (
        yarn_frequencies(theta, head_size, scaling) if is_yarn else inverse_frequencies(theta, head_size, scaling)
    )
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    amplitude = yarn_amplitude(scaling) if is_yarn else 1.0
    return (amplitude * angles.cos()).to(device), (amplitude * angles.sin()).to(device)


def rotary_tables(config: ModelConfig, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin tables, float32 [num_positions, size of the rotated part].

    They are computed, not stored in the module, so that no cast, shard or checkpoint ever touches them.
    """
    scaling = config.yarn or config.rope_scaling
    return _tables(config.rope_theta, config.attention_head_size, scaling, num_positions, device)


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
