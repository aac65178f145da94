import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval.statistics import FEWEST_ITEMS, Items, bounds, difference, items_to_decide


def share(correct: list[bool]) -> Items:
    return Items(
        numerators={str(i): float(value) for i, value in enumerate(correct)},
        denominators={str(i): 1.0 for i in range(len(correct))},
        higher_is_better=True,
    )


def ratio(above: np.ndarray, below: np.ndarray) -> Items:
    return Items(
        numerators={str(i): float(value) for i, value in enumerate(above)},
        denominators={str(i): float(value) for i, value in enumerate(below)},
        higher_is_better=False,
    )


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0.001, 0.4))
def test_bounds_enclose_the_value_and_widen_with_certainty(correct: list[bool], error_rate: float) -> None:
    wide, narrow = bounds(share(correct), error_rate=error_rate / 2), bounds(share(correct), error_rate=error_rate)
    assert 0.0 <= wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high <= 1.0


def test_exact_bounds_are_those_of_the_tables() -> None:
    """Clopper and Pearson (1934): 4 of 10 at 95 % two-sided."""
    found = bounds(share([True] * 4 + [False] * 6), error_rate=0.025)
    assert (found.low, found.high) == pytest.approx((0.12155, 0.73762), abs=1e-5)


@settings(max_examples=30)
@given(st.integers(1, 300), st.data(), st.floats(1e-4, 0.4))
def test_exact_bounds_are_scipys(num_items: int, data: st.DataObject, error_rate: float) -> None:
    right = data.draw(st.integers(0, num_items))
    found = bounds(share([True] * right + [False] * (num_items - right)), error_rate=error_rate)
    expected = stats.binomtest(right, num_items).proportion_ci(1.0 - 2.0 * error_rate, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_error_in_20_items_still_allows_13_percent() -> None:
    found = bounds(share([True] * 20), error_rate=0.05)
    assert (found.low, found.high) == pytest.approx((0.05 ** (1 / 20), 1.0))


@given(st.data())
def test_the_order_of_items_does_not_matter_and_strangers_are_left_out(data: st.DataObject) -> None:
    num_items = data.draw(st.integers(FEWEST_ITEMS, 30))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    below = generator.integers(1, 200, num_items)
    new, old = ratio(below * generator.uniform(1, 3, num_items), below), ratio(below * 2.0, below)
    order = data.draw(st.permutations([*old.numerators]))
    more = Items(
        numerators={**old.of(order).numerators, "stranger": 1e9},
        denominators={**old.of(order).denominators, "stranger": 1.0},
        higher_is_better=False,
    )
    mine, theirs = difference(new, old, error_rate=0.05), difference(new, more, error_rate=0.05)
    assert (theirs.value, theirs.low, theirs.high) == pytest.approx((mine.value, mine.low, mine.high))


def test_nothing_in_common_says_nothing() -> None:
    found = difference(
        Items(numerators={"a": 1.0}, denominators={"a": 1.0}, higher_is_better=True), share([True]), error_rate=0.05
    )
    assert (found.low, found.high, found.num_items) == (-math.inf, math.inf, 0)


def test_few_documents_say_nothing() -> None:
    below = np.full(FEWEST_ITEMS - 1, 100.0)
    assert bounds(ratio(2.0 * below, below), error_rate=0.05).high == math.inf


def test_the_number_of_items_to_decide_is_about_right() -> None:
    found = bounds(share([True] * 55 + [False] * 45), error_rate=0.05)
    needed = items_to_decide(found, 0.5)
    assert needed is not None
    assert 200 < needed < 400
    scaled = share([True] * round(0.55 * needed) + [False] * round(0.45 * needed))
    assert bounds(scaled, error_rate=0.05).low == pytest.approx(0.5, abs=0.01)
    assert items_to_decide(found, found.value) is None
