"""Numbers from scores. Sums are exact (math.fsum), so no number depends on the order of documents or items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def bits_per_byte(bits: Sequence[float], num_bytes: Sequence[int]) -> float:
    """Return total bits over total bytes of all documents; comparable between tokenizers (arXiv:2101.00027, sec. 3.1).

    Raises:
        ValueError: there is no byte.
    """
    if sum(num_bytes) == 0:
        raise ValueError("bits per byte of no bytes")
    return math.fsum(bits) / sum(num_bytes)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[int],
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a sum over another, over documents (Efron 1979), always the same one.

    It says how much the number depends on which documents were held out; with one document it has no width.
    """
    generator = np.random.default_rng(seed)
    above = np.asarray(numerators, dtype=np.float64)
    below = np.asarray(denominators, dtype=np.float64)
    ratios = np.empty(num_resamples)
    for i in range(num_resamples):
        drawn = generator.integers(len(above), size=len(above))
        ratios[i] = above[drawn].sum() / below[drawn].sum()
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(ratios, [tail, 1.0 - tail])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Share of right answers, with the standard error of a share of independent items."""

    value: float
    standard_error: float


def accuracy(correct: Sequence[bool]) -> Accuracy:
    """Return the share of right answers and its binomial standard error sqrt(p (1 - p) / n).

    Raises:
        ValueError: there is no item.
    """
    if not correct:
        raise ValueError("accuracy of no items")
    share = sum(correct) / len(correct)
    return Accuracy(value=share, standard_error=math.sqrt(share * (1.0 - share) / len(correct)))
