"""Best-fit packing: lengths -> packs of at most so many tokens. No files, no torch.

Best-fit decreasing, as in "Fewer Truncations Improve Language Modeling" (arXiv:2404.10830, algorithm 1): the longest
piece first, each into the fullest pack that still has room. Room left is a whole number of tokens, so packs wait in one
stack per number, and the set of numbers that have any is the bits of one integer: the smallest that is large enough is
found by a shift.
"""

import numpy as np


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (order, starts): pack n has the pieces order[starts[n] : starts[n + 1]], all pieces once.

    The same lengths give the same packs. Packs come in the order in which they were opened.

    Args:
        lengths: tokens of each piece, 1 to `capacity`.
        capacity: tokens of a pack.
    """
    pack_of = np.empty(len(lengths), dtype=np.int64)
    by_length = np.argsort(-lengths, kind="stable")
    waiting: list[list[int]] = [[] for _ in range(capacity + 1)]
    occupied, num_packs = 0, 0
    for piece, length in zip(by_length.tolist(), lengths[by_length].tolist(), strict=True):
        large_enough = occupied >> length
        if large_enough:
            room = length + (large_enough & -large_enough).bit_length() - 1
            pack = waiting[room].pop()
            if not waiting[room]:
                occupied ^= 1 << room
        else:
            room, pack = capacity, num_packs
            num_packs += 1
        pack_of[piece] = pack
        if left := room - length:
            waiting[left].append(pack)
            occupied |= 1 << left
    order = by_length[np.argsort(pack_of[by_length], kind="stable")]
    starts = np.searchsorted(pack_of[order], np.arange(num_packs + 1))
    return order, starts
