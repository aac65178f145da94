"""What an evaluation took: tokens, the time in which the model computed, and what that cost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from eval.conductor import TokenModel
from eval.requests import Continuation, Prompt, ScoredContinuation

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class Metered:
    """A model that counts; it answers as the one that it asks."""

    model: TokenModel
    num_devices: int
    """That compute."""
    price_per_hour: float | None
    """Of one device, in any one currency; None: it is not known."""
    prompt_tokens: int = field(default=0, init=False)
    """Read before anything was scored or generated, as often as it was asked for; shared ones count each time."""
    scored_tokens: int = field(default=0, init=False)
    generated_tokens: int = field(default=0, init=False)
    scoring_seconds: float = field(default=0.0, init=False)
    generating_seconds: float = field(default=0.0, init=False)

    def score(self, continuations: Sequence[Continuation], /) -> list[ScoredContinuation]:
        """Return the score of each continuation, in order."""
        scores, seconds = _timed(lambda: self.model.score(continuations))
        self.scoring_seconds += seconds
        self.prompt_tokens += sum(len(one.context_ids) for one in continuations)
        self.scored_tokens += sum(len(one.continuation_ids) for one in continuations)
        return scores

    def generate(self, prompts: Sequence[Prompt], /) -> list[list[int]]:
        """Return the tokens that follow each prompt, in order."""
        new, seconds = _timed(lambda: self.model.generate(prompts))
        self.generating_seconds += seconds
        self.prompt_tokens += sum(len(prompt.ids) for prompt in prompts)
        self.generated_tokens += sum(map(len, new))
        return new

    def numbers(self) -> dict[str, float]:
        """Return all of it for a report; rates and costs as far as they are known."""
        seconds = self.scoring_seconds + self.generating_seconds
        tokens = self.prompt_tokens + self.scored_tokens + self.generated_tokens
        found = {
            "prompt_tokens": float(self.prompt_tokens),
            "scored_tokens": float(self.scored_tokens),
            "generated_tokens": float(self.generated_tokens),
            "model_seconds": seconds,
        }
        if self.generating_seconds > 0:
            found["generated_tokens_per_second"] = self.generated_tokens / self.generating_seconds
        if seconds > 0:
            found["tokens_per_second"] = tokens / seconds
        if self.price_per_hour is not None:
            found["cost"] = self.price_per_hour * self.num_devices * seconds / 3600
            if tokens:
                found["cost_per_million_tokens"] = found["cost"] / tokens * 1e6
        return found


def _timed(act: Callable[[], T]) -> tuple[T, float]:
    begun = time.monotonic()
    return act(), time.monotonic() - begun
