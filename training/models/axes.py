"""The parallel axes that reach into a layer: which ranks share a sequence's tokens, and which a block's experts.

Engines make the groups and hand them to the layers; a layer without them computes everything itself. Exchanges are
all-to-alls, whose gradient is the exchange back.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Axis:
    """One rank's place on a parallel axis."""

    size: int = 1
    """Ranks on it."""
    place: int = 0
    """This rank's."""
    group: dist.ProcessGroup | None = None
    """They; None for one rank alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """What a layer has to know of the layout."""

    sequence: Axis = Axis()
    """Ranks that share the tokens of each sequence; place p has the p-th of equal parts."""
    expert: Axis = Axis()
    """Ranks that a block's experts are spread over; place p has the p-th of equal parts."""


ALONE = Axes()


def exchange_rows(rows: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    """Return the rows that an axis's ranks have for this one, those of its first rank first; differentiable.

    Args:
        rows: [sum of `sent`, …]; those for the first rank first.
        sent: rows for each rank.
        received: rows from each rank.
        axis: of more than one rank.
    """
    exchanged = _Exchange.apply(rows, sent, received, axis.group)
    assert isinstance(exchanged, Tensor)
    return exchanged


def exchange_counts(counts_RE: Tensor, axis: Axis) -> Tensor:
    """Return what each rank of an axis has counted for this one: row r goes to rank r, row r comes from it."""
    received_RE = torch.empty_like(counts_RE)
    dist.all_to_all_single(received_RE, counts_RE, group=axis.group)
    return received_RE


def tokens_for_heads(x_BNTH: Tensor, axis: Axis) -> Tensor:
    """Return all tokens of this rank's heads for its own tokens of all heads, [B, N/S, T·S, H]; differentiable.

    (DeepSpeed-Ulysses, arXiv:2309.14509, section 3.1.) N must be a multiple of the axis's size S.
    """
    S = axis.size
    by_head = x_BNTH.unflatten(1, (S, -1)).movedim(1, 0)  # S, B, N/S, T, H
    by_segment = _exchange_evenly(by_head, axis)
    return by_segment.movedim(0, 2).flatten(2, 3)


def heads_for_tokens(x_BNTH: Tensor, axis: Axis) -> Tensor:
    """Return all heads of this rank's tokens for all tokens of its heads: the inverse of `tokens_for_heads`."""
    S = axis.size
    by_segment = x_BNTH.unflatten(2, (S, -1)).movedim(2, 0)  # S, B, N/S, T/S, H
    by_head = _exchange_evenly(by_segment, axis)
    return by_head.movedim(0, 1).flatten(1, 2)


def sum_constant(x: Tensor, axis: Axis) -> Tensor:
    """Return the sum of x over an axis's ranks, through which the gradient flows to this rank's part alone.

    For a term that every rank of the axis computes alike and in full: each then makes the gradient of its own part.
    """
    if axis.size == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total, group=axis.group)
    return x + (total - x.detach())


def _exchange_evenly(parts: Tensor, axis: Axis) -> Tensor:
    rows = parts.reshape(axis.size, -1)
    return exchange_rows(rows, [1] * axis.size, [1] * axis.size, axis).view(parts.shape)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradients[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _all_to_all(rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    arrived = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived
