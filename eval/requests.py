"""What is asked of a model, in tokens, and what it answers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """A continuation to be scored after a context. Nothing is put before the context: what stands there is in it."""

    context_ids: Sequence[int]
    """At least one token: where a text begins, the token that stands between documents."""
    continuation_ids: Sequence[int]
    """At least one token."""

    def __post_init__(self) -> None:
        assert len(self.context_ids) > 0, "a continuation follows at least one token"
        assert len(self.continuation_ids) > 0, "a continuation to be scored has at least one token"

    @property
    def num_tokens(self) -> int:
        """Positions a model needs for it."""
        return len(self.context_ids) + len(self.continuation_ids) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredContinuation:
    """How likely a continuation is."""

    logprob: float
    """log p(continuation | context), in nats."""
    is_greedy: bool
    """Whether it is what the model itself would say, taking the most likely token each time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Something to be continued, and how."""

    ids: Sequence[int]
    """At least one token."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """The text is complete once it holds one of these."""
    temperature: float = 0.0
    """0 takes the most likely token each time."""
    top_p: float = 1.0
    """Share of the probability that is drawn from."""
    seed: int = 0
    """All the chance there is: the same seed draws the same text, in any layout and batch."""

    def __post_init__(self) -> None:
        assert len(self.ids) > 0, "there is nothing to continue"
        assert self.max_new_tokens > 0, "nothing is asked for"

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.ids)


def to_plain(request: Continuation | Prompt) -> dict[str, Any]:
    """Return a request as JSON values."""
    return asdict(request)
