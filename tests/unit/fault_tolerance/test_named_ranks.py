"""Which rank is named, from what each has found."""

import pytest

from training.engine.repeated_step import blamed
from training.fault_tolerance.corruption import blamed_of_group


@pytest.mark.parametrize("zero_stage", [1, 2])
@pytest.mark.parametrize(
    ("differing", "named"),
    [
        ([{1}, set()], {0}),  # rank 0's copy of what replica 1 owns
        ([set(), {1}], {1}),  # the owner's own copy
        ([{1}, {1}], {1}),  # all copies agree, the owner's fp32 weights do not
        ([{0, 1}, {1}], {0, 1}),
        ([set(), set()], set()),
    ],
)
def test_of_two_replicas_the_odd_one_is_named_because_the_owner_knows(
    zero_stage: int, differing: list[set[int]], named: set[int]
) -> None:
    assert set(blamed_of_group(differing, range(2), zero_stage=zero_stage)) == named


def test_without_zero_the_odd_one_of_three_is_named_and_of_two_both() -> None:
    assert set(blamed_of_group([set(), {0}, set()], range(3), zero_stage=0)) == {1}
    assert set(blamed_of_group([set(), {0}, {0}], range(3), zero_stage=0)) == {0}
    assert set(blamed_of_group([set(), {0}], range(2), zero_stage=0)) == {0, 1}


def test_under_zero_3_a_rank_is_its_own_witness() -> None:
    assert set(blamed_of_group([set(), {1}, set()], range(3), zero_stage=3)) == {1}


def test_only_the_ranks_that_share_weights_are_compared() -> None:
    differing: list[set[int]] = [set(), set(), {1}, set()]
    assert blamed_of_group(differing, [0, 1], zero_stage=1) == {}
    assert set(blamed_of_group(differing, [2, 3], zero_stage=1)) == {2}


def told(
    *, forward: tuple[int, ...] = (), backward: tuple[int, ...] = (), reduced: bool = False
) -> dict[str, list[int]]:
    return {"forward": list(forward), "backward": list(backward), "reduced": [0] if reduced else []}


PIPELINE = [0, 1, 0, 1]
"""Replica of each of 4 ranks: two pipeline stages × two replicas."""


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        # a wrong output in stage 0 of replica 1 changes all that comes after, and every reduced gradient
        ([told(reduced=True), told(forward=(1, 2), backward=(0, 1, 2), reduced=True), told(reduced=True),
          told(forward=(3, 4), backward=(3, 4), reduced=True)], [1]),
        # a wrong gradient in the last stage goes back to the first
        ([told(backward=(0, 1)), told(), told(backward=(3,)), told()], [2]),
        # both replicas, each on another rank
        ([told(forward=(0,)), told(), told(forward=(3,)), told(forward=(4,))], [0, 3]),
        # nobody computed anything else, but what came out of the reduction differs
        ([told(), told(reduced=True), told(), told()], [1]),
    ],
)  # fmt: skip
def test_the_first_wrong_output_is_to_blame_else_the_last_wrong_gradient(
    seen: list[dict[str, list[int]]], named: list[int]
) -> None:
    assert sorted(blamed(seen, PIPELINE)) == named
