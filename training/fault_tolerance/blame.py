"""Who is to blame for a hang: a decision from what every rank last said. Pure.

A rank waits for those of its groups that have started fewer collectives there than it has. From the rank whose time is
up one goes along these waits, to ranks that wait for nobody: they hold up the others. A rank that says nothing more is
frozen, or dead, and comes before all that.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What a rank does, as it tells the others."""

    beat: int
    """Grows as long as the rank can speak."""
    section: str
    step: int
    """Of the run; 0 outside of steps."""
    seconds: float
    """In the section, without progress."""
    operation: str = ""
    """The last thing it started with its peers."""
    waits: bool = False
    """Whether it is waiting for peers, or may be (where the host cannot know)."""
    started: dict[str, int] = field(default_factory=dict)
    """"<group> <ranks>" -> how many collectives it has started there; "<group> 3>4": transfers from rank 3 to 4."""
    place: int = 0
    """Pipeline stage: busy times compare only within one."""
    windows: list[list[float]] = field(default_factory=list)
    """The last whole windows of steps, each as [number, mean seconds of a step less those spent waiting for peers]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blame:
    """A decision."""

    ranks: tuple[int, ...]
    """To blame, the first one first; empty if all wait for each other."""
    reason: str
    """What speaks against them, for people."""
    silent: bool = False
    """Whether they have said nothing for a while: they may not be able to end by themselves."""


def blame(table: Mapping[int, Status], *, accuser: int, silent: Collection[int], world_size: int) -> Blame:
    """Return who holds up a job.

    Args:
        table: what each rank said last; ranks that never said anything are missing.
        accuser: the rank whose time is up; in the table.
        silent: ranks whose beats have stopped.
        world_size: ranks of the job.
    """
    quiet = sorted({*silent, *(rank for rank in range(world_size) if rank not in table)})
    if quiet:
        return Blame(
            ranks=tuple(quiet), reason="says nothing any more: frozen, dead, or stuck in native code", silent=True
        )
    ends = _ends(table, accuser)
    running = ends & {rank for rank, status in table.items() if not status.waits}
    if running:
        alone = running == {accuser}
        return Blame(
            ranks=_longest_first(table, running), reason="goes no further" if alone else "the others wait for it"
        )
    if ends - {accuser}:
        return Blame(
            ranks=_longest_first(table, ends),
            reason="the others wait for it, and it waits in something that all its peers have begun: the network, or a "
            "device",
        )
    if astray := _minority(table):
        return Blame(ranks=astray, reason="is somewhere else than most of the others")
    return Blame(ranks=(), reason="all wait for each other and nobody is behind: the network, a device, or a deadlock")


def _ends(table: Mapping[int, Status], accuser: int) -> set[int]:
    """Return the ranks that the accuser waits for in the end and that wait for nobody; itself if it waits for none."""
    behind = _Behind(table)
    seen, frontier = {accuser}, [accuser]
    ends: set[int] = set()
    while frontier:
        rank = frontier.pop()
        awaited = set(behind.of(rank)) if table[rank].waits else set()
        if not awaited:
            ends.add(rank)
        frontier += awaited - seen
        seen |= awaited
    return ends


class _Behind:
    """Who has started less than others, group by group."""

    def __init__(self, table: Mapping[int, Status]) -> None:
        self._table = table
        self._laggards: dict[str, list[tuple[int, int]]] = {}
        """Group -> (number started, rank) of all but those that have started most, in ascending order."""
        most: dict[str, int] = {}
        for status in table.values():
            for key, number in status.started.items():
                most[key] = max(number, most.get(key, 0))
        for key, number in most.items():
            counts = [(table[rank].started.get(key, 0), rank) for rank in members(key) if rank in table]
            self._laggards[key] = sorted(pair for pair in counts if pair[0] < number)

    def of(self, rank: int) -> Iterator[int]:
        """Yield the ranks that have started less than this one in a group that both are in."""
        for key, number in self._table[rank].started.items():
            for less, other in self._laggards[key]:
                if less >= number:
                    break
                yield other


def members(key: str) -> list[int]:
    """Return the ranks of a group, or the two of a transfer, from its key in `Status.started`."""
    ranks = key.partition(" ")[2].replace(">", ",")
    if "-" in ranks:
        span, _, step = ranks.partition("/")
        first, _, last = span.partition("-")
        return list(range(int(first), int(last) + 1, int(step or 1)))
    return [int(rank) for rank in ranks.split(",")]


def _longest_first(table: Mapping[int, Status], ranks: Collection[int]) -> tuple[int, ...]:
    return tuple(sorted(ranks, key=lambda rank: (-table[rank].seconds, rank)))


def _minority(table: Mapping[int, Status]) -> tuple[int, ...]:
    """Return the ranks that are not where more than half of all are; none if there is no such place."""
    places = Counter((status.section, status.step) for status in table.values())
    (place, number), *_ = places.most_common(1)
    if 2 * number <= len(table):
        return ()
    return tuple(sorted(rank for rank, status in table.items() if (status.section, status.step) != place))
