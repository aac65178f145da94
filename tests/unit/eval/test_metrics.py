import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import accuracy, bits_per_byte, ratio_interval

documents = st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 10**6)), min_size=1, max_size=30)


def test_bits_per_byte_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    assert bits_per_byte([8.0, 10.0], [1, 9]) == pytest.approx(1.8)


@given(documents, st.randoms(use_true_random=False))
def test_bits_per_byte_does_not_depend_on_the_order_of_documents(rows: list, random) -> None:
    shuffled = rows.copy()
    random.shuffle(shuffled)
    assert bits_per_byte(*zip(*rows, strict=True)) == bits_per_byte(*zip(*shuffled, strict=True))


def test_bits_per_byte_of_no_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="no bytes"):
        bits_per_byte([1.0], [0])


@given(documents)
def test_the_bootstrap_interval_lies_within_the_documents_and_repeats_exactly(rows: list) -> None:
    bits, num_bytes = zip(*rows, strict=True)
    low, high = ratio_interval(bits, num_bytes, num_resamples=50)
    ratios = [b / n for b, n in rows]
    margin = 1e-9 * (1 + max(ratios))
    assert min(ratios) - margin <= low <= high <= max(ratios) + margin
    assert (low, high) == ratio_interval(bits, num_bytes, num_resamples=50)


def test_the_bootstrap_interval_is_as_wide_as_theory_says_for_many_documents() -> None:
    """400 documents of one byte, half 1 bit and half 3: the mean 2 has standard error 1/20, so 95% is 2 ± 0.098."""
    low, high = ratio_interval([1.0, 3.0] * 200, [1] * 400)
    assert low == pytest.approx(2 - 1.96 / 20, abs=0.01)
    assert high == pytest.approx(2 + 1.96 / 20, abs=0.01)


def test_accuracy_has_the_standard_error_of_a_share() -> None:
    result = accuracy([True] * 3 + [False])
    assert result.value == 0.75
    assert result.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_accuracy_of_no_items_is_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        accuracy([])
