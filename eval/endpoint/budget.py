"""What may still be spent. Nothing is sent that could exceed it, even if every answer is as long as it may be."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from training.errors import EndpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """Money per million tokens."""

    per_million_input_tokens: float
    per_million_output_tokens: float

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Return the price of so many tokens."""
        millions = input_tokens * self.per_million_input_tokens + output_tokens * self.per_million_output_tokens
        return millions / 1e6


class BudgetSpent(EndpointError):
    """The next request could cost more than is left; nothing was sent."""


class Budget:
    """Counts tokens and money, spent and promised.

    Args:
        prices: None if no cost is known.
        max_cost: most money; None for no limit.
        max_tokens: most tokens, in and out; None for no limit.
    """

    def __init__(self, *, prices: Prices | None, max_cost: float | None, max_tokens: int | None) -> None:
        self._prices, self._max_cost, self._max_tokens = prices, max_cost, max_tokens
        self._changed = threading.Condition()
        self._spent = (0, 0)
        self._promised = (0, 0)

    @property
    def spent(self) -> tuple[int, int]:
        """Tokens in and out so far; what the server did not count, and what it may have billed, at its most."""
        return self._spent

    def promise(
        self, input_tokens: int, output_tokens: int, *, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Set the most that a request can cost aside; wait for others to end if only their promises are in the way.

        Args:
            input_tokens: the most there can be.
            output_tokens: likewise.
            should_stop: asked whenever another one has ended; then nothing is set aside for certain.

        Raises:
            BudgetSpent: it does not fit into what is left.
        """
        with self._changed:
            while not self._fits(self._spent, self._promised, (input_tokens, output_tokens)):
                if self._promised == (0, 0):
                    raise BudgetSpent(self._words(input_tokens, output_tokens))
                if should_stop():
                    break
                self._changed.wait()
            self._promised = _sum(self._promised, (input_tokens, output_tokens))

    def settle(self, promised: tuple[int, int], spent: tuple[int, int]) -> None:
        """Put what a request did cost in the place of what was set aside for it."""
        with self._changed:
            self._promised = (self._promised[0] - promised[0], self._promised[1] - promised[1])
            self._spent = _sum(self._spent, spent)
            self._changed.notify_all()

    def _fits(self, *tokens: tuple[int, int]) -> bool:
        total = _sum(*tokens)
        if self._max_tokens is not None and sum(total) > self._max_tokens:
            return False
        return self._max_cost is None or self._prices is None or self._prices.cost(*total) <= self._max_cost

    def _words(self, input_tokens: int, output_tokens: int) -> str:
        worst = f"up to {input_tokens:,} tokens in and {output_tokens:,} out"
        if self._max_cost is not None and self._prices is not None:
            asked = f"up to {self._prices.cost(input_tokens, output_tokens):.6g} ({worst})"
            left = f"{self._prices.cost(*self._spent):.6g} of max_cost={self._max_cost:g} is spent"
        else:
            asked, left = worst, f"{sum(self._spent):,} of max_tokens_total={self._max_tokens:,} are spent"
        return (
            f"the next request could cost {asked}, and {left}: it was not sent\n"
            "  -> raise the limit and start again; every answer so far is kept and is not paid for twice"
        )


def _sum(*tokens: tuple[int, int]) -> tuple[int, int]:
    return sum(pair[0] for pair in tokens), sum(pair[1] for pair in tokens)
