from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.data.packing import best_fit


def packs_of(lengths: list[int], capacity: int) -> list[list[int]]:
    order, starts = best_fit(np.array(lengths, dtype=np.int64), capacity)
    return [order[a:b].tolist() for a, b in pairwise(starts)]


def straightforward(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as it stands in textbooks, with the newest of equally full packs."""
    packs: list[list[int]] = []
    touched: list[int] = []
    for time, piece in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        room = [capacity - sum(lengths[i] for i in pack) for pack in packs]
        fits = [(left, -touched[n], n) for n, left in enumerate(room) if left >= lengths[piece]]
        if not fits:
            packs.append([])
            touched.append(0)
            fits = [(0, 0, len(packs) - 1)]
        pack = min(fits)[2]
        packs[pack].append(piece)
        touched[pack] = time
    return packs


@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=60))))
def test_packs_are_those_of_best_fit_decreasing(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    packs = packs_of(lengths, capacity)
    assert packs == straightforward(lengths, capacity)
    assert sorted(piece for pack in packs for piece in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in pack) <= capacity for pack in packs)


def test_many_documents_leave_hardly_any_room() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 1.2, 200_000), 1, 4096).astype(np.int64)
    order, starts = best_fit(lengths, 4096)
    assert np.array_equal(np.sort(order), np.arange(len(lengths)))
    assert lengths.sum() / ((len(starts) - 1) * 4096) > 0.999
