"""What an endpoint's answers took: tokens as the server counted them, money, and time."""

from collections.abc import Iterable
from dataclasses import dataclass

from eval.endpoint.budget import Prices
from eval.endpoint.journal import Answered


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Of some answers."""

    answers: int
    input_tokens: int
    """That the server counted."""
    output_tokens: int
    """Likewise."""
    uncounted_answers: int
    """Answers whose tokens it did not count; they are in no number but this one and the seconds."""
    busy_seconds: float
    """Time during which at least one of them was under way."""
    cost: float | None
    """Of the counted tokens, in the currency of the prices; None without prices."""

    @property
    def output_tokens_per_second(self) -> float | None:
        """Speed as it was met, with so many requests at a time; None if nothing was measured."""
        return self.output_tokens / self.busy_seconds if self.busy_seconds else None

    @property
    def cost_per_million_tokens(self) -> float | None:
        """Money per million counted tokens, in and out together; None without prices or tokens."""
        tokens = self.input_tokens + self.output_tokens
        return None if self.cost is None or not tokens else self.cost / tokens * 1e6


def usage_of(answers: Iterable[Answered], prices: Prices | None) -> Usage:
    """Return what some answers took."""
    answers = list(answers)
    counted = [answer.tokens for answer in answers if answer.tokens is not None]
    tokens_in, tokens_out = sum(tokens for tokens, _ in counted), sum(tokens for _, tokens in counted)
    return Usage(
        answers=len(answers),
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        uncounted_answers=len(answers) - len(counted),
        busy_seconds=_union_seconds((answer.time - answer.seconds, answer.time) for answer in answers),
        cost=None if prices is None else prices.cost(tokens_in, tokens_out),
    )


def usage_per_task(answers: Iterable[Answered], prices: Prices | None) -> dict[str, Usage]:
    """Return what each task's answers took; one that two tasks share is the first one's."""
    by_task: dict[str, list[Answered]] = {}
    for answer in answers:
        by_task.setdefault(answer.task, []).append(answer)
    return {task: usage_of(of_task, prices) for task, of_task in sorted(by_task.items())}


def _union_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the time that at least one interval covers."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
