"""Scores of items that were tried several times."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks.tries import pass_hat, scores


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_hat_is_the_share_of_choices_of_k_tries_that_all_passed(tries: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(tries)))
    choices = list(combinations(tries, k))
    assert pass_hat(sum(tries), len(tries), k) == pytest.approx(sum(map(all, choices)) / len(choices))


def test_only_what_there_are_enough_tries_for() -> None:
    assert scores([True]) == {"pass@1": 1.0}
    assert scores([True, False, True, True]) == {"pass@1": 0.75, "pass^2": 0.5, "pass^4": 0.0}
    assert set(scores([True] * 8)) == {"pass@1", "pass^2", "pass^4", "pass^8"}
