"""What it is that keeps programs from their end, once none of them can go on. No torch."""

from collections.abc import Callable, Collection, Sequence

from training.rehearsal.actors import Actors
from training.rehearsal.operations import Collective, Operation, Receive, Send

_MOST_RINGS = 4
"""Rings of actors that are named; a hang spreads to everybody."""

Blame = Callable[[int, str, Operation | None], None]
"""Told an actor, what it does wrong, and the operation."""


class Standstill:
    """Names causes: whoever ended without an operation, two ends of transfers that do not fit, and rings that wait.

    Args:
        actors: as they stand.
        arrived: those that have come to the collective that an actor stands at, the actor among them.
        blame: is told what is found.
    """

    def __init__(self, actors: Actors, arrived: Callable[[int, Collective], Collection[int]], blame: Blame) -> None:
        self._actors, self._arrived, self._blame = actors, arrived, blame

    def judge(self, stuck: Sequence[int]) -> None:
        """Name the causes of a standstill.

        Args:
            stuck: those that stand somewhere, and whose own mistake is not known.
        """
        named: set[int] = set()
        for actor in stuck:
            other = self._facing(actor)
            if other is not None and other not in named:
                odd = self._rarer([actor, other])
                self._blame(odd, f"two ends that do not fit: {self._standing([actor, other])}", self._actors.at(odd))
                named |= {actor, other}
        for actor in stuck:
            ended = [other for other in self._awaited(actor) if self._actors.at(other) is None]
            if ended and actor not in named and not named & set(ended):
                op = self._actors.at(actor)
                self._blame(ended[0], f"has ended, but {self._actors.name(actor)} stands at: {op}", op)
                named |= {actor, *ended}
        for _ in range(_MOST_RINGS):
            ring = self._ring([actor for actor in stuck if actor not in named])
            if not ring:
                break
            odd = self._rarer(ring)
            self._blame(odd, f"wait for each other: {self._standing(ring)}", self._actors.at(odd))
            named |= set(ring)

    def _ring(self, stuck: Sequence[int]) -> list[int]:
        """Return actors that wait for each other in a ring, or []."""
        allowed = set(stuck)
        for begin in stuck:
            path, actor = [begin], begin
            while following := [other for other in self._awaited(actor) if other in allowed]:
                actor = self._rarer(following)
                if actor in path:
                    return path[path.index(actor) :]
                path.append(actor)
        return []

    def _awaited(self, actor: int) -> list[int]:
        """Return the actors that an actor waits for."""
        op = self._actors.at(actor)
        if isinstance(op, Collective):
            return sorted(self._actors.meeting(actor, op.group).members.difference(self._arrived(actor, op)))
        return [self._actors.peer(actor, op.peer)] if isinstance(op, Send | Receive) else []

    def _facing(self, actor: int) -> int | None:
        """Return the receiver that a sender waits for, if it waits for the sender too, but for something else."""
        op = self._actors.at(actor)
        if not isinstance(op, Send):
            return None
        other = self._actors.peer(actor, op.peer)
        meets = self._actors.at(other)
        return other if isinstance(meets, Receive) and self._actors.peer(other, meets.peer) == actor else None

    def _rarer(self, actors: Sequence[int]) -> int:
        """Return the actor of the fewest ranks; of those, one whose text is not its pipeline stage's."""
        return min(actors, key=lambda one: (len(self._actors.ranks(one)), self._actors.departure(one) is None))

    def _standing(self, actors: Sequence[int]) -> str:
        return "; ".join(f"{self._actors.name(actor)} stands at: {self._actors.at(actor)}" for actor in actors)
