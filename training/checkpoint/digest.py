"""A 64-bit digest of a tensor that does not depend on how it was cut into slices.

    digest(x) = sum over i of bits(x_i) * m(i)   mod 2^64,      m(i) odd, a fixed function of the flat index i

It is a sum, so the digests of disjoint ranges, made by any ranks in any order, add up to the digest of the whole. A
single changed element changes it for certain: bits differ by less than 2^64 and an odd factor is invertible mod 2^64.
Elements that were swapped or shifted have other factors. It finds mistakes, not attackers: against those stands the
SHA-256 of every file.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

MODULUS = 2**64
BLOCK = 65_536
"""Elements that share one outer factor; their bits and inner factors stay in a core's cache."""


def digest(bits: NDArray[np.uint32], start: int) -> int:
    """Return the digest of a range of a flattened float32 tensor, in [0, 2^64).

    Args:
        bits: 1-D; the elements' bit patterns.
        start: flat index of the first one in the whole tensor.
    """
    inner = inner_factors()
    total, done = 0, 0
    while done < len(bits):
        block, offset = divmod(start + done, BLOCK)
        part = bits[done : done + BLOCK - offset]
        products = np.multiply(part, inner[offset : offset + len(part)], dtype=np.uint64)
        total += int(products.sum(dtype=np.uint64)) * outer_factor(block)
        done += len(part)
    return total % MODULUS


def telescoped(start: int, stop: int) -> int:
    """Return a number of a range, in [0, 2^64), whose sum over ranges is that of the whole if they cut it up exactly.

    Where one ends and the next begins, the terms cancel. Any other set of so many elements has the same sum only if
    well-mixed numbers happen to.
    """
    return (_mixed(stop) - _mixed(start)) % MODULUS


def _mixed(index: int) -> int:
    """Return a well-mixed odd 64-bit number (splitmix64's finaliser, Steele et al., OOPSLA 2014, figure 15)."""
    z = (index * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % MODULUS
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % MODULUS
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % MODULUS
    return (z ^ (z >> 31)) | 1


@cache
def outer_factor(block: int) -> int:
    """Return the factor of a block of elements."""
    return _mixed(BLOCK + block)


@cache
def inner_factors() -> NDArray[np.uint64]:
    """Return the factors of the elements within a block."""
    return np.array([_mixed(index) for index in range(BLOCK)], dtype=np.uint64)
