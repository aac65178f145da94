"""The digest of training/checkpoint/digest.py, computed where the tensor is; of the bits of any 16- or 32-bit dtype."""

import math
from functools import cache

import torch
from torch import Tensor

from training.checkpoint.digest import BLOCK, MODULUS, inner_factors, outer_factor

_BLOCKS_AT_ONCE = 32
"""Blocks that are widened to 64 bits at the same time: 16 MB a temporary."""
_BITS = {2: (torch.int16, 0xFFFF), 4: (torch.int32, 0xFFFF_FFFF)}


@torch.no_grad()
def tensor_digest(values: Tensor) -> int:
    """Return the digest of a tensor in [0, 2^64): of fp32 the same as `digest(bits, 0)`; waits for the device once."""
    dtype, mask = _BITS[values.element_size()]
    bits = values.detach().reshape(-1).view(dtype)
    inner = _inner_factors(values.device)
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for first in range(0, math.ceil(len(bits) / BLOCK), _BLOCKS_AT_ONCE):
        part = bits[first * BLOCK : (first + _BLOCKS_AT_ONCE) * BLOCK].to(torch.int64).bitwise_and_(mask)
        whole, rest = divmod(len(part), BLOCK)
        # int64 wraps around as uint64 does: sums and products are right modulo 2^64.
        sums = [(part[: whole * BLOCK].view(whole, BLOCK) * inner).sum(dim=1)] if whole else []
        if rest:
            sums.append((part[whole * BLOCK :] * inner[:rest]).sum().view(1))
        factors = [_signed(outer_factor(first + number)) for number in range(whole + bool(rest))]
        total += (torch.cat(sums) * torch.tensor(factors, device=values.device)).sum()
    return int(total.item()) % MODULUS


@cache
def _inner_factors(device: torch.device) -> Tensor:
    return torch.from_numpy(inner_factors().view("int64")).to(device)


def _signed(value: int) -> int:
    """Return the number in [-2^63, 2^63) that is the same modulo 2^64."""
    return (value + MODULUS // 2) % MODULUS - MODULUS // 2
