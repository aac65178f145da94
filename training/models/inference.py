"""What layers do otherwise when nothing is learned: keys and values are kept, and only some positions get logits.

Layers take one tensor and return one, so that a pipeline can cut anywhere between them. What a forward is for stands
around it, as `training/models/dropout.py` does with its keys. Shapes: B sequences, T tokens, S places of a cache,
K key/value heads, H head size, N positions.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class KeyValueCache:
    """Keys and values of the tokens that some sequences begin with, for those layers that run on this rank.

    Each sequence has its own length: what stands behind it is padding, which later tokens overwrite. So a token has the
    same position, and sees the same tokens, whatever it shares a batch with.

    Args:
        num_sequences: sequences, B.
        capacity_tokens: places of each, S.
    """

    def __init__(self, num_sequences: int, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.lengths_B = torch.zeros(num_sequences, dtype=torch.int64)
        """Tokens of each sequence, on CPU."""
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        """Attention layer -> keys and values, [B, K, S, H] each; values may have a head size of their own."""
        self._shared: dict[Hashable, Any] = {}
        """What all layers of a forward share."""

    def extend(self, layer: nn.Module, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next T tokens' keys and values; return those of all places that any sequence uses by then.

        The lengths stay: every layer of a forward extends from the same ones.
        """
        if layer not in self._kept:
            B, K = k_BKTH.shape[:2]
            keys, values = (x.new_zeros((B, K, self.capacity_tokens, x.shape[-1])) for x in (k_BKTH, v_BKTH))
            self._kept[layer] = keys, values
        num_tokens = k_BKTH.shape[2]
        used, first, is_even = self.once(num_tokens, lambda: self._place(num_tokens))
        if is_even:
            places = slice(first, first + num_tokens)
            for kept, new in zip(self._kept[layer], (k_BKTH, v_BKTH), strict=True):
                kept[:, :, places] = new
        else:
            positions_BT = self.once((num_tokens, "positions"), lambda: self.positions(num_tokens, k_BKTH.device))
            for kept, new in zip(self._kept[layer], (k_BKTH, v_BKTH), strict=True):
                kept.scatter_(2, positions_BT[:, None, :, None].expand_as(new), new)
        keys, values = self._kept[layer]
        return keys[:, :, :used], values[:, :, :used]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what make() returns, made once: the lengths are the same for every layer of a forward."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Return the positions of each sequence's next tokens, int64 [B, T]."""
        return (self.lengths_B[:, None] + torch.arange(num_tokens)).to(device)

    def visible(self, num_tokens: int, device: torch.device) -> Tensor:
        """Return which places each of the next tokens sees, bool [B, 1, T, S used]: those up to its own."""
        positions_BT = self.positions(num_tokens, device)
        return (torch.arange(self._used(num_tokens), device=device) <= positions_BT[..., None])[:, None]

    def advance(self, num_tokens_B: Tensor) -> None:
        """Count tokens that every layer has written as part of the sequences; int64 [B] on CPU."""
        self.lengths_B = self.lengths_B + num_tokens_B
        self._shared.clear()

    def repeated(self, rows: Sequence[int], capacity_tokens: int) -> Self:
        """Return a cache of its own whose sequences begin as these rows do."""
        copy = type(self)(len(rows), capacity_tokens)
        index = torch.tensor(rows)
        copy.lengths_B = self.lengths_B[index]
        used = self._used(0)
        for layer, kept in self._kept.items():
            pair = []
            for tensor in kept:
                grown = tensor.new_zeros((len(rows), tensor.shape[1], capacity_tokens, tensor.shape[3]))
                grown[:, :, :used] = tensor[index.to(tensor.device), :, :used]
                pair.append(grown)
            copy._kept[layer] = (pair[0], pair[1])
        return copy

    def _place(self, num_tokens: int) -> tuple[int, int, bool]:
        """Return the places used with so many more tokens, the first of them, and whether it is that of every row."""
        first = int(self.lengths_B.min())
        return self._used(num_tokens), first, first == int(self.lengths_B.max())

    def _used(self, num_tokens: int) -> int:
        used = int(self.lengths_B.max()) + num_tokens
        assert used <= self.capacity_tokens, f"{used} tokens in a cache of {self.capacity_tokens}"
        return used


@dataclass(frozen=True, kw_only=True, slots=True)
class InferencePass:
    """What one forward is for."""

    rows_N: Tensor
    """Sequences of the positions that get logits; int64 on CPU."""
    columns_N: Tensor
    """Those positions within this forward's tokens."""
    cache: KeyValueCache | None
    """What the tokens continue, and where theirs are kept."""


_current_pass: ContextVar[InferencePass | None] = ContextVar("inference_pass", default=None)


@contextmanager
def inferring(this: InferencePass) -> Iterator[None]:
    """Let the forwards inside be that pass."""
    token = _current_pass.set(this)
    try:
        yield
    finally:
        _current_pass.reset(token)


def is_inferring() -> bool:
    """Return whether the forward that runs is one in which nothing is learned."""
    return _current_pass.get() is not None


def current_cache() -> KeyValueCache | None:
    """Return the cache of the pass that is running, if there is one."""
    this = _current_pass.get()
    return None if this is None else this.cache


def wanted_positions(hidden_BTD: Tensor) -> Tensor:
    """Return the hidden states that logits are wanted of: all of them, [N, D] of an inference pass.

    The projection to the vocabulary costs a fifth of a small model's forward, and most of its memory.
    """
    this = _current_pass.get()
    if this is None:
        return hidden_BTD
    return hidden_BTD[this.rows_N.to(hidden_BTD.device), this.columns_N.to(hidden_BTD.device)]
