"""Which requests share a call of the engine, and which replica makes it. Pure: the same on every rank."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from eval.requests import Continuation, Prompt

_WORTH_IT = 0.8
"""Contexts are run apart if that leaves at most this share of the tokens: copying their keys and values costs too."""


class _Sized(Protocol):
    @property
    def num_tokens(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One batch's run by one replica."""

    batch_index: int
    counts: bool
    """False if the replica only keeps the others company; its result is dropped."""


def turns(*, num_batches: int, num_replicas: int, replica: int) -> list[Turn]:
    """Return a replica's batches: replica, replica + num_replicas, …; equally many turns on every replica."""
    num_rounds = -(-num_batches // num_replicas)
    own = (round_index * num_replicas + replica for round_index in range(num_rounds))
    return [Turn(batch_index=min(index, num_batches - 1), counts=index < num_batches) for index in own]


def batches_by_length(requests: Sequence[_Sized], batch_sequences: int) -> list[list[int]]:
    """Return the indices of requests in batches: longest first, so that little is padded and no surprise comes late.

    Requests that can share work stay together: continuations of one context, prompts that are drawn alike.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(_shared(request), []).append(index)
    ordered = sorted(groups.values(), key=lambda group: -max(requests[index].num_tokens for index in group))
    batches: list[list[int]] = []
    for _, of_a_kind in _by_kind(requests, ordered):
        indices = [index for group in of_a_kind for index in group]
        batches += [indices[first : first + batch_sequences] for first in range(0, len(indices), batch_sequences)]
    return batches


def contexts_of(rows: Sequence[Continuation]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return the different contexts of some rows, and of each row which one is its."""
    places: dict[tuple[int, ...], int] = {}
    of_row = [places.setdefault(tuple(row.context_ids), len(places)) for row in rows]
    return list(places), of_row


def two_passes_are_cheaper(rows: Sequence[Continuation], batches: Sequence[Sequence[int]]) -> bool:
    """Return whether running each context of a batch once, and then the continuations, takes clearly fewer tokens.

    One answer for all batches: replicas call the engine equally often.
    """
    if not rows or min(len(row.context_ids) for row in rows) < 2:
        return False
    whole = apart = 0
    for batch in batches:
        of_batch = [rows[index] for index in batch]
        contexts, _ = contexts_of(of_batch)
        whole += len(batch) * max(row.num_tokens for row in of_batch)
        apart += len(contexts) * (max(map(len, contexts)) - 1)
        apart += len(batch) * max(len(row.continuation_ids) for row in of_batch)
    return apart <= _WORTH_IT * whole


def _shared(request: _Sized) -> Hashable:
    return tuple(request.context_ids) if isinstance(request, Continuation) else id(request)


def _by_kind(requests: Sequence[_Sized], groups: Sequence[list[int]]) -> list[tuple[Hashable, list[list[int]]]]:
    """Return groups by how they are drawn, each kind in its order."""
    kinds: dict[Hashable, list[list[int]]] = {}
    for group in groups:
        first = requests[group[0]]
        kind = (first.temperature, first.top_p) if isinstance(first, Prompt) else None
        kinds.setdefault(kind, []).append(group)
    return list(kinds.items())
