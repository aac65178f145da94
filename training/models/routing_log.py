"""What the routers of a step did, and the losses they add: noted beside the forward, since layers pass one tensor on.

A router's losses join the gradient where its block's output is passed on (`join_loss`), so that a pipeline stage
without the model's loss makes them too. They are sums over tokens, like the model's loss, and get the same factor.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingResult:
    """What the routers did with one global batch, equal on every rank."""

    loads: tuple[tuple[int, ...], ...]
    """Of each block with experts, in order: tokens that chose each expert."""
    balance_loss: float
    """Load-balancing loss per valid target, its coefficient in it, summed over blocks; 0.0 where there is none."""
    z_loss: float
    """Router z-loss, likewise."""
    entropy: float
    """Mean over tokens and blocks of the entropy of a token's scores over all experts, in nats."""

    def numbers(self, expert_ranks: int) -> dict[str, float]:
        """Return what a person looks at to tell whether the experts are well; a share of 1 is what is even.

        Args:
            expert_ranks: ranks that a block's experts are spread over.
        """
        worst = [_over_mean(loads) for loads in self.loads]
        by_rank = [[sum(part) for part in _parts(loads, expert_ranks)] for loads in self.loads]
        return {
            "worst_load": max(worst),
            "worst_block": float(worst.index(max(worst))),
            "dead": float(sum(loads.count(0) for loads in self.loads)),
            "worst_rank_load": max(map(_over_mean, by_rank)),
            "entropy": self.entropy,
            "entropy_of_even": self.entropy / math.log(len(self.loads[0])),
            "balance_loss": self.balance_loss,
            "z_loss": self.z_loss,
        }


class RoutingLog:
    """Sums of one step over this rank's blocks and micro-batches.

    Args:
        places: name of a block with experts -> its place among all of the model.
        num_experts: routed experts of a block.
        experts_per_token: those that each token passes.
    """

    def __init__(self, places: Mapping[str, int], *, num_experts: int, experts_per_token: int) -> None:
        self._places = places
        self._num_experts = num_experts
        self._experts_per_token = experts_per_token
        self._sums: list[Tensor | None] = [None] * len(places)
        self.gradient_factor = 1.0
        """What the gradient of a loss summed over tokens is multiplied by."""

    def begin(self, gradient_factor: float) -> None:
        """Forget the step before."""
        self._sums = [None] * len(self._places)
        self.gradient_factor = gradient_factor

    def note(self, block: str, counts_E: Tensor, balance_loss: Tensor, z_loss: Tensor, entropy: Tensor) -> None:
        """Add one micro-batch of a block: tokens of each expert, losses and entropies summed over tokens."""
        sums = torch.stack([balance_loss, z_loss, entropy]).detach().double()
        mine = torch.cat([counts_E.double(), sums])
        place = self._places[block]
        before = self._sums[place]
        self._sums[place] = mine if before is None else before + mine

    def sums(self) -> list[float]:
        """Return all sums in one list, zeros for the blocks of other ranks: to be summed over all ranks."""
        width = self._num_experts + 3
        rows = [[0.0] * width if row is None else row.tolist() for row in self._sums]
        return [value for row in rows for value in row]

    def result(self, totals: Sequence[float], num_tokens: int) -> RoutingResult:
        """Return the result of the step.

        Args:
            totals: `sums` summed over all ranks.
            num_tokens: valid targets of the global batch.
        """
        width, num_experts = self._num_experts + 3, self._num_experts
        rows = [totals[start : start + width] for start in range(0, len(totals), width)]
        num_routed = sum(sum(row[:num_experts]) for row in rows) / self._experts_per_token
        loads = tuple(tuple(round(count) for count in row[:num_experts]) for row in rows)
        return RoutingResult(
            loads=loads,
            balance_loss=sum(row[num_experts] for row in rows) / num_tokens,
            z_loss=sum(row[num_experts + 1] for row in rows) / num_tokens,
            entropy=sum(row[num_experts + 2] for row in rows) / num_routed if num_routed else 0.0,
        )


_current_log: ContextVar[RoutingLog | None] = ContextVar("routing_log", default=None)


@contextmanager
def routing_into(log: RoutingLog | None) -> Iterator[None]:
    """Let the routers of the forwards inside note what they do. Backward, also with recompute, may run outside."""
    token = _current_log.set(log)
    try:
        yield
    finally:
        _current_log.reset(token)


class RoutingNote:
    """One forward's place in the log: the second forward of recompute runs the same code, and notes nothing."""

    def __init__(self, log: RoutingLog, block: str) -> None:
        self.gradient_factor = log.gradient_factor
        self._log = log
        self._block = block
        self.is_noted = False
        """Whether the forward has noted; what only the log needs is not worth computing again."""

    def note(self, counts_E: Tensor, balance_loss: Tensor, z_loss: Tensor, entropy: Tensor) -> None:
        """Add to the log; once."""
        assert not self.is_noted
        self.is_noted = True
        self._log.note(self._block, counts_E, balance_loss, z_loss, entropy)


def current_note(block: str) -> RoutingNote | None:
    """Return the note of the forward that begins; None where nothing is learned."""
    log = _current_log.get()
    return None if log is None or not torch.is_grad_enabled() else RoutingNote(log, block)


def join_loss(hidden: Tensor, loss: Tensor, gradient_factor: float) -> Tensor:
    """Return the hidden states unchanged; in their backward, `loss` gets the gradient `gradient_factor`."""
    joined = _JoinLoss.apply(hidden, loss, gradient_factor)
    assert isinstance(joined, Tensor)
    return joined


class _JoinLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, gradient_factor: float) -> Tensor:
        ctx.gradient = torch.full_like(loss, gradient_factor)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradients[0], ctx.gradient, None


def _over_mean(loads: Sequence[int]) -> float:
    return max(loads) * len(loads) / sum(loads) if any(loads) else 1.0


def _parts(loads: Sequence[int], num_parts: int) -> list[Sequence[int]]:
    size = len(loads) // num_parts
    return [loads[start : start + size] for start in range(0, len(loads), size)]
