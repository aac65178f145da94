from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.checkpoint.digest import MODULUS, digest, telescoped

BLOCK = 65_536
BITS = np.random.default_rng(0).integers(0, 2**32, 3 * BLOCK + 17, dtype=np.uint32)
WHOLE = digest(BITS, 0)


@given(cuts=st.sets(st.integers(1, len(BITS) - 1), max_size=5))
def test_digests_of_ranges_add_up_however_the_tensor_is_cut(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(BITS)]
    assert sum(digest(BITS[start:stop], start) for start, stop in pairwise(edges)) % MODULUS == WHOLE


@given(index=st.integers(0, len(BITS) - 1), bit=st.integers(0, 31))
def test_one_flipped_bit_anywhere_changes_it(index: int, bit: int) -> None:
    changed = BITS.copy()
    changed[index] ^= np.uint32(1 << bit)
    assert digest(changed, 0) != WHOLE


@given(a=st.integers(0, len(BITS) - 1), b=st.integers(0, len(BITS) - 1))
def test_two_swapped_elements_change_it(a: int, b: int) -> None:
    changed = BITS.copy()
    changed[[a, b]] = changed[[b, a]]
    assert (digest(changed, 0) == WHOLE) == (BITS[a] == BITS[b])


@given(shift=st.integers(1, 2 * BLOCK))
def test_a_range_at_another_place_has_another_digest(shift: int) -> None:
    assert digest(BITS[:1000], shift) != digest(BITS[:1000], 0)


def test_nothing_adds_nothing() -> None:
    assert digest(BITS[:0], 7) == 0


RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)).map(lambda r: (r[0], r[0] + r[1])), max_size=8)


@given(size=st.integers(1, 40), cuts=st.sets(st.integers(1, 39), max_size=8), strays=RANGES)
def test_only_ranges_that_cut_up_the_whole_telescope_to_it(
    size: int, cuts: set[int], strays: list[tuple[int, int]]
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < size), size]
    assert sum(telescoped(*ends) for ends in pairwise(edges)) % MODULUS == telescoped(0, size)
    is_exact = sorted(element for ends in strays for element in range(*ends)) == list(range(size))
    assert (sum(telescoped(*ends) for ends in strays) % MODULUS == telescoped(0, size)) == is_exact
