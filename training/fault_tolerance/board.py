"""The job's table of who does what, and its one verdict, in the key-value store that the ranks found each other with.

Texts only, nothing pickled, no file per rank. TCPStore (torch 2.13) has a time limit for keys that are not there, none
for a server that does not answer: a frozen rank 0 holds its callers for ever. So every call here may hang, and whoever
must not hang makes it in another thread (`within`).
"""

import _thread
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

import torch.distributed as dist

from training.fault_tolerance.blame import Status
from training.plain_files import parse_json, typed
from training.process_identity import Identity

T = TypeVar("T")

_VERDICT = "verdict"
_CHUNK = 1024
"""Keys asked for in one message."""


class Board:
    """One connection to the store; one thread at a time may use it.

    Raises:
        RuntimeError: from every method, if the store is gone.
    """

    def __init__(self, store: dist.Store, *, rank: int, world_size: int) -> None:
        self._store = dist.PrefixStore("heartbeat", store.clone())  # type: ignore[attr-defined]
        self._rank = rank
        self._ranks = range(world_size)

    def introduce(self, identity: Identity) -> None:
        """Say who this rank is."""
        self._store.set(f"who/{self._rank}", json.dumps(asdict(identity)))

    def who(self, rank: int) -> Identity | None:
        """Return who a rank is; None if it has not said so."""
        key = f"who/{rank}"
        return typed(Identity, parse_json(self._store.get(key))) if self._store.check([key]) else None

    def beat(self, status: Status) -> str | None:
        """Say what this rank does; return the verdict if there is one."""
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(status)))
        return self.verdict()

    def verdict(self) -> str | None:
        """Return the verdict if there is one."""
        return self._store.get(_VERDICT).decode() if self._store.check([_VERDICT]) else None

    def announce(self, verdict: str) -> str:
        """Make this the verdict unless there is one; return the one that counts."""
        return self._store.compare_set(_VERDICT, "", verdict).decode()

    def is_first(self, question: str) -> bool:
        """Return True to the first who asks this question, False to all others."""
        return self._store.add(f"first/{question}", 1) == 1

    def table(self) -> dict[int, Status]:
        """Return what each rank said last; those that never said anything are missing."""
        found = {}
        for start in range(0, len(self._ranks), _CHUNK):
            ranks = self._there(self._ranks[start : start + _CHUNK])
            texts = self._store.multi_get([f"beat/{rank}" for rank in ranks]) if ranks else []
            found |= {rank: typed(Status, parse_json(text)) for rank, text in zip(ranks, texts, strict=True)}
        return found

    def _there(self, ranks: Sequence[int]) -> Sequence[int]:
        """Return those of some ranks that have said anything: asking for a key that is not there would wait for it."""
        if self._store.check([f"beat/{rank}" for rank in ranks]):
            return ranks
        return [rank for rank in ranks if self._store.check([f"beat/{rank}"])]


class NoAnswer(Exception):
    """A call did not return in time; its thread is left to itself."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns.

    Raises:
        NoAnswer: it did not return within so many seconds.
        Exception: whatever the call raised.
    """
    answers: list[T] = []
    errors: list[Exception] = []
    done = threading.Event()

    def work() -> None:
        try:
            answers.append(call())
        except Exception as error:  # raised again by the caller's thread
            errors.append(error)
        done.set()

    # Thread.start waits for ever for a thread that dies before it begins, for want of memory (CPython 3.11).
    _thread.start_new_thread(work, ())
    done.wait(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise NoAnswer
    return answers[0]
