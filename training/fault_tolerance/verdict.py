"""What is decided about a hang, as every rank and every person hears it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from training.fault_tolerance.blame import Blame, Status
from training.plain_files import parse_json, typed
from training.process_identity import Identity

_NAMED = 4
"""Ranks that a message describes; it counts the others."""
ADVICE = "  -> the stacks of all ranks that could write them are in logs/*.stacks; resume=auto goes on"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A decision about a hang; the first one of a job counts."""

    message: str
    frozen: tuple[Identity, ...]
    """Those to blame that may not be able to end by themselves."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the verdict that a rank has announced."""
        values = parse_json(text)
        return cls(message=str(values["message"]), frozen=tuple(typed(Identity, who) for who in values["frozen"]))


def message(
    blamed: Blame,
    table: Mapping[int, Status],
    people: Mapping[int, Identity | None],
    *,
    accuser: int,
    limit_seconds: float,
) -> str:
    """Return the words of a verdict: whose time was up, who is to blame, and what each was doing."""
    own = table[accuser]
    lines = [f"rank {accuser} got no further within {limit_seconds:.0f} s: {where(own)}"]
    if not blamed.ranks:
        lines += [blamed.reason, *(f"rank {rank}: {where(table[rank])}" for rank in sorted(table)[:_NAMED])]
    for rank in blamed.ranks[:_NAMED]:
        who = people.get(rank)
        host = f" on {who.host} (process {who.pid})" if who else ""
        last = where(table[rank]) if rank in table else "it never said anything"
        if blamed.silent and rank in table:
            last = f"last heard of in {last}"
        lines.append(f"to blame: rank {rank}{host}: {blamed.reason}; {last}")
    if len(blamed.ranks) > _NAMED:
        lines.append(f"and {len(blamed.ranks) - _NAMED} more ranks")
    return "\n".join([*lines, ADVICE])


def where(status: Status) -> str:
    """Return in words what a rank does."""
    at = f" at step {status.step}" if status.step else ""
    doing = "waits in" if status.waits else "has last called"
    operation = f", {doing} {status.operation}" if status.operation else ""
    return f"section {status.section}{at} for {status.seconds:.0f} s{operation}"
