"""Scores of an item that a model tried several times."""

import math
from collections.abc import Sequence

RELIABLE_OVER = (2, 4, 8)
"""The k of pass^k."""


def scores(passed: Sequence[bool]) -> dict[str, float]:
    """Return `pass@1`, the share of tries that passed, and `pass^k` for each k for which there are enough tries."""
    count, tries = sum(passed), len(passed)
    reliable = {f"pass^{k}": pass_hat(count, tries, k) for k in RELIABLE_OVER if k <= tries}
    return {"pass@1": count / tries, **reliable}


def pass_hat(passed: int, tries: int, k: int) -> float:
    """Return the unbiased estimate of the chance that all of k tries pass (tau-bench, arXiv:2406.12045, section 3)."""
    return math.comb(passed, k) / math.comb(tries, k)
