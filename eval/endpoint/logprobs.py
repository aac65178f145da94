"""Scores of a text that a server was asked to echo with log-probabilities (the completions API with echo and logprobs).

Servers do not say where a context ends: its tokens are found by putting their texts together again. A token that holds
the last characters of the context and the first of the continuation belongs to the continuation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.errors import EndpointError

_LEADING_TOKENS = 4
"""Most tokens that a server may put before a text by itself, such as one for its beginning."""
_ROUNDING = 1e-6
"""Of a log-probability on its way through JSON."""

Span = tuple[int, int]


class EchoUnusable(EndpointError):
    """The server does not echo a text with its log-probabilities, or not in a way that can be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EchoScore:
    """How likely a part of a text is."""

    logprob: float
    """In nats."""
    is_greedy: tuple[bool, ...]
    """Of each of its tokens: whether no other was likelier."""


def echo_score(response: Mapping[str, Any], *, prefix: str, text: str, begin: int) -> EchoScore:
    """Return the score of text[begin:], in an answer to prefix + text.

    Raises:
        EchoUnusable: the answer does not hold it.
    """
    tokens, logprobs, top = _columns(response["choices"][0])
    spans, boundary = spans_of(tokens, prefix + text), len(prefix) + begin
    if spans is None:  # a special token such as <|endoftext|> is echoed as nothing
        spans, boundary = spans_of(tokens, text), begin
    if spans is None:
        raise EchoUnusable(
            f"the echoed tokens {_shown(tokens)} do not make up the text {_shown(text)}\n"
            "  -> the server's log-probabilities cannot be told apart; generate instead of scoring (api=chat)"
        )
    counted = [i for i, span in enumerate(spans) if span is not None and _is_after(span, boundary)]
    if any(not isinstance(logprobs[i], int | float) or not isinstance(top[i], Mapping) or not top[i] for i in counted):
        raise EchoUnusable(
            f"there is no log-probability of the first token of {_shown(text[begin:])}: nothing stands before it\n"
            "  -> set prefix_text to the text of the model's own token between documents, such as <|endoftext|>"
        )
    return EchoScore(
        logprob=float(sum(logprobs[i] for i in counted)),
        is_greedy=tuple(logprobs[i] >= max(top[i].values()) - _ROUNDING for i in counted),
    )


def spans_of(tokens: Sequence[str], text: str) -> list[Span | None] | None:
    """Return where in a text each token stands; None for tokens before it. None in all if they do not make it up.

    Args:
        tokens: their texts, perhaps after a few that the server put before the text, and before a few that it
            generated. One that is part of a character may be empty or hold U+FFFD, or its bytes after `bytes:`.
        text: what they are of.
    """
    for first in range(min(_LEADING_TOKENS, len(tokens)) + 1):
        spans = _walk(tokens[first:], text)
        if spans is not None:
            return [None] * first + spans
    return None


def _walk(tokens: Sequence[str], text: str) -> list[Span | None] | None:
    spans: list[Span | None] = []
    position, num_pending = 0, 0
    for i, token in enumerate(tokens):
        if position == len(text) and not num_pending:
            break
        if _is_part_of_a_character(token):
            num_pending += 1
            continue
        found = position if text.startswith(token, position) else -1
        if num_pending:
            is_empty = not any(tokens[i - num_pending : i])
            if found < 0 or not is_empty:
                found = text.find(token, position + 1)
        if found < 0:
            return None
        # Before the first character only a special token can be empty.
        spans += [(position, found) if found or position else None] * num_pending
        spans.append((found, found + len(token)))
        position, num_pending = found + len(token), 0
    return spans if position == len(text) else None


def _is_part_of_a_character(token: str) -> bool:
    return not token or "\ufffd" in token or token.startswith("bytes:")


def _is_after(span: Span, boundary: int) -> bool:
    begin, end = span
    return end > boundary or (begin == end and begin >= boundary)


def _columns(choice: Mapping[str, Any]) -> tuple[list[str], list[Any], list[Any]]:
    found = choice.get("logprobs")
    columns = [
        found.get(n) if isinstance(found, Mapping) else None for n in ("tokens", "token_logprobs", "top_logprobs")
    ]
    if not all(isinstance(column, list) and len(column) == len(columns[0] or ()) for column in columns):
        raise EchoUnusable(
            "the server answered a request for echo and logprobs without them: it does not score texts\n"
            "  -> multiple choice: api=chat and multiple_choice_by_letter=true (another measurement, for both models); "
            "bits per byte cannot be had of this endpoint; or ask a server that has them, such as vLLM's"
        )
    tokens, logprobs, top = columns
    assert tokens is not None
    assert logprobs is not None
    assert top is not None
    return tokens, logprobs, top


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:80]} … {text[-79:]}"
