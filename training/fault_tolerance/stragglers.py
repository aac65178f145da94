"""Which ranks are slow: a decision from every rank's busy time. Pure.

Ranks of one pipeline stage do the same work; those of others do not, so they are not compared.
"""

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Busy:
    """How long a rank is busy in a step, in one window of steps."""

    place: int
    """Pipeline stage."""
    seconds: float
    """Mean, without waiting for others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Straggler:
    """A slow rank."""

    rank: int
    ratio: float
    """To the median of the others, in the last window."""
    seconds: float
    others_seconds: float
    """That median."""


def ratios(busy: Mapping[int, Busy]) -> dict[int, tuple[float, float]]:
    """Return rank -> (ratio to the median of the others of its pipeline stage, that median); none for lone ranks."""
    places: dict[int, dict[int, float]] = defaultdict(dict)
    for rank, work in busy.items():
        places[work.place][rank] = work.seconds
    found = {}
    for seconds in places.values():
        if len(seconds) < 2:
            continue
        ordered = sorted(seconds.values())
        for rank, own in seconds.items():
            median = _median_without(ordered, own)
            if median > 0:
                found[rank] = (own / median, median)
    return found


def _median_without(ordered: list[float], value: float) -> float:
    """Return the median of sorted numbers less one of them, in constant time but for finding it."""
    place = bisect_left(ordered, value)
    low, high = (len(ordered) - 2) // 2, (len(ordered) - 1) // 2
    return (ordered[low + (low >= place)] + ordered[high + (high >= place)]) / 2


class SlowRanks:
    """Remembers the last windows of every rank; names one when it begins to be slow, once until it has recovered."""

    def __init__(self, *, ratio: float, slow_windows: int, of_windows: int) -> None:
        self._ratio = ratio
        self._slow_windows = slow_windows
        self._of_windows = of_windows
        self._slow: dict[int, deque[bool]] = {}
        self._named: set[int] = set()

    def add(self, busy: Mapping[int, Busy]) -> list[Straggler]:
        """Take in one window of all ranks; return those that are named now."""
        found = []
        for rank, (ratio, others) in ratios(busy).items():
            last = self._slow.setdefault(rank, deque(maxlen=self._of_windows))
            last.append(ratio >= self._ratio)
            number = sum(last)
            if number >= self._slow_windows and rank not in self._named:
                self._named.add(rank)
                seconds = busy[rank].seconds
                found.append(Straggler(rank=rank, ratio=ratio, seconds=seconds, others_seconds=others))
            elif number == 0:
                self._named.discard(rank)
        return found
