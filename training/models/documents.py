"""Which tokens of packed sequences belong together, for attention that stays within a document.

Positions are not counted anew in each document: rotary embedding depends on the distance of two tokens alone.
Shape suffixes: B sequences, T tokens.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Documents:
    """The documents of B whole sequences, from the number of each token's; a document is a run of equal numbers.

    Args:
        documents_BT: integers on CPU.
    """

    def __init__(self, documents_BT: Tensor) -> None:
        begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
        begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        self.numbers_BT = begins_BT.cumsum(-1, dtype=torch.int32)
        """int32 on CPU: numbers that rise by one with every document of a sequence."""
        self.num_tokens = documents_BT.shape[1]
        """Tokens of each sequence, T."""
        self.lengths = tuple(
            tuple(torch.diff(row_T.nonzero()[:, 0], append=torch.tensor([self.num_tokens])).tolist())
            for row_T in begins_BT
        )
        """Tokens of each document, sequence by sequence."""
        self._shared: dict[Hashable, Any] = {}

    @classmethod
    def whole(cls, num_sequences: int, num_tokens: int) -> "Documents":
        """Return those of sequences that are one document each."""
        return cls(torch.zeros((num_sequences, num_tokens), dtype=torch.int32))

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what make() returns, made once: all layers of a forward have the same documents."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]
