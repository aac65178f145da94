from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import ConfigError
from training.parallel.partition import balance, by_hand

costs_and_parts = st.lists(st.integers(0, 100), min_size=1, max_size=9).flatmap(
    lambda costs: st.tuples(st.just(costs), st.integers(1, len(costs)))
)


def largest_cost(costs: list[int], parts: list[range]) -> int:
    return max(sum(costs[part.start : part.stop]) for part in parts)


def squared_costs(costs: list[int], parts: list[range]) -> int:
    return sum(sum(costs[part.start : part.stop]) ** 2 for part in parts)


def all_partitions(num_layers: int, num_parts: int) -> list[list[range]]:
    return [
        [range(start, stop) for start, stop in zip((0, *cuts), (*cuts, num_layers), strict=True)]
        for cuts in combinations(range(1, num_layers), num_parts - 1)
    ]


@given(costs_and_parts)
def test_no_other_partition_has_a_smaller_largest_part_or_is_more_even(case: tuple[list[int], int]) -> None:
    costs, num_parts = case
    parts = balance(costs, num_parts)
    assert [index for part in parts for index in part] == list(range(len(costs)))
    assert all(len(part) > 0 for part in parts)
    assert len(parts) == num_parts
    others = all_partitions(len(costs), num_parts)
    best = min(largest_cost(costs, other) for other in others)
    assert largest_cost(costs, parts) == best
    least = min(squared_costs(costs, other) for other in others if largest_cost(costs, other) == best)
    assert squared_costs(costs, parts) == least


def test_more_pipeline_stages_than_layers_cannot_be_filled() -> None:
    with pytest.raises(ValueError, match="2 layers cannot fill 3"):
        balance([1.0, 1.0], 3)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_blocks_by_hand_cover_embedding_blocks_norm_and_projection(blocks: list[int]) -> None:
    parts = by_hand(blocks, sum(blocks))
    assert [index for part in parts for index in part] == list(range(sum(blocks) + 3))
    extra = [0] * len(blocks)
    extra[0] += 1  # embedding
    extra[-1] += 2  # final norm, output projection
    assert [len(part) for part in parts] == [number + more for number, more in zip(blocks, extra, strict=True)]


@pytest.mark.parametrize("blocks", [[2, 1], [3, 2], [4, 0], [5, -1]])
def test_blocks_that_do_not_add_up_are_refused(blocks: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"the model has 4 blocks.*\n.*sum to 4"):
        by_hand(blocks, 4)
