"""Layers -> pipeline stages: contiguous parts with the smallest possible largest cost. No torch."""

from collections.abc import Sequence
from itertools import accumulate

from training.errors import ConfigError


def balance(costs: Sequence[float], num_parts: int) -> list[range]:
    """Return contiguous, non-empty ranges covering every layer once, whose largest summed cost is minimal.

    Of those, the one with the least sum of squared costs: a pipeline is as slow as its slowest stage, and beyond that
    even stages hold the least memory and wait the least. Ties leave the later parts shorter, so the last pipeline
    stage, which also computes the loss, is not the fuller one. Exact dynamic programmes, O(num_parts · layers²) at the
    worst.
    """
    if not 1 <= num_parts <= len(costs):
        raise ValueError(f"{len(costs)} layers cannot fill {num_parts} pipeline stages")
    total = [0.0, *accumulate(costs)]
    limit = _least_largest(total, num_parts)
    best = [[float("inf")] * len(total) for _ in range(num_parts + 1)]
    cut = [[0] * len(total) for _ in range(num_parts + 1)]
    best[0][0] = 0.0
    for part in range(1, num_parts + 1):
        for end in range(part, len(total) - (num_parts - part)):  # the later parts need a layer each
            for start in range(end - 1, part - 2, -1):
                cost = total[end] - total[start]
                if cost > limit:
                    break  # and so would every earlier start
                squares = best[part - 1][start] + cost * cost
                if squares < best[part][end]:
                    best[part][end], cut[part][end] = squares, start
    ranges: list[range] = []
    end = len(costs)
    for part in range(num_parts, 0, -1):
        ranges.append(range(cut[part][end], end))
        end = cut[part][end]
    return ranges[::-1]


def _least_largest(total: Sequence[float], num_parts: int) -> float:
    """Return the least possible largest cost of a part, of costs that add up to `total`."""
    best = [0.0, *[float("inf")] * (len(total) - 1)]
    for part in range(1, num_parts + 1):
        before, best = best, [float("inf")] * len(total)
        for end in range(part, len(total) - (num_parts - part)):
            for start in range(end - 1, part - 2, -1):
                if total[end] - total[start] >= best[end]:
                    break  # and so would every earlier start
                best[end] = min(best[end], max(before[start], total[end] - total[start]))
    return best[-1]


def by_hand(blocks_per_pipeline_stage: Sequence[int], num_blocks: int, *, num_after: int = 2) -> list[range]:
    """Return layer ranges from a manual number of blocks per pipeline stage.

    The embedding goes to the first pipeline stage; what comes after the blocks, of which there are `num_after`, to the
    last: final norm and output projection, prediction blocks between them.

    Raises:
        ConfigError: the numbers do not add up to the model's blocks, or one is below 1.
    """
    if sum(blocks_per_pipeline_stage) != num_blocks or min(blocks_per_pipeline_stage) < 1:
        raise ConfigError(
            "parallel.layers_per_pipeline_stage",
            list(blocks_per_pipeline_stage),
            f"the model has {num_blocks} blocks and every pipeline stage needs at least one",
            f"give numbers >= 1 that sum to {num_blocks}, or null to balance by cost",
        )
    ends = list(accumulate(blocks_per_pipeline_stage))
    starts = [0, *[end + 1 for end in ends[:-1]]]
    stops = [*[end + 1 for end in ends[:-1]], num_blocks + 1 + num_after]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]
