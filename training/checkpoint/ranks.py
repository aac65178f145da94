"""The ranks that save or load together, as this package sees them."""

from collections.abc import Callable
from typing import Protocol

from training.errors import AutarkyError, CorruptCheckpoint, DataError, LossSpike, RunInUse, StorageError


class Ranks(Protocol):
    """Every method but the properties is collective and runs on the CPU (training/engine/process_group.py)."""

    @property
    def rank(self) -> int:
        """This rank."""
        ...

    @property
    def world_size(self) -> int:
        """How many there are."""
        ...

    def agree(self, ok: bool) -> bool:
        """Return True on every rank if and only if every rank passed True."""
        ...

    def sum_integers(self, values: list[int]) -> list[int]:
        """Return the element-wise sum over all ranks, modulo 2^64."""
        ...

    def gather_text(self, text: str) -> list[str]:
        """Return every rank's text on every rank, by rank."""
        ...


def try_together(ranks: Ranks, act: Callable[[], None]) -> tuple[Exception | None, list[str]]:
    """Do something on every rank; return this rank's failure and the words of all that failed, none if none did.

    Only what can be expected of storage and of what lies there counts as a failure; a bug is raised as it is.
    """
    failure: Exception | None = None
    try:
        act()
    except (OSError, AutarkyError) as error:
        failure = error
    if ranks.agree(failure is None):
        return None, []
    told = ranks.gather_text("" if failure is None else _words(failure))
    return failure, [f"rank {rank}: {reason}" for rank, reason in enumerate(told) if reason]


def do_together(ranks: Ranks, act: Callable[[], None]) -> None:
    """Return after every rank has done something.

    Raises:
        AutarkyError: on every rank, if any failed: its own failure, else that of the first that failed.
    """
    failure, told = try_together(ranks, act)
    if isinstance(failure, AutarkyError):
        raise failure
    if told:
        rank, kind, words = told[0].split(": ", 2)
        raise _FAILURES.get(kind, StorageError)(f"{words} ({rank})") from failure


_FAILURES = {failure.__name__: failure for failure in (CorruptCheckpoint, RunInUse, DataError, LossSpike)}


def _words(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}"
