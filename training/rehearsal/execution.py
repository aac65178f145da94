"""Runs all ranks' programs against each other, as strictly as can be, and names what does not fit. No torch.

Every operation blocks: a collective until all members of its group stand at it, a send until its peer stands at the
matching receive (`training.parallel.program.check_programs`). Programs that end under these rules end under any.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Collection

from training.parallel.schedule import Action, Kind, Schedule
from training.rehearsal.actors import Actors, Meeting
from training.rehearsal.findings import Finding
from training.rehearsal.grid import Grid
from training.rehearsal.operations import Collective, Compute, Operation, Receive, Send
from training.rehearsal.program import Phase, Texts
from training.rehearsal.standstill import Standstill

_MOST_RANKS = 16
"""Ranks that a finding lists by number."""


def execute(phase: Phase, texts: Texts, grid: Grid, schedule: Schedule | None) -> list[Finding]:
    """Return what keeps the programs of one phase from ending, or from computing what the schedule asks for.

    Args:
        phase: for messages.
        texts: what each rank runs.
        grid: who is in which group.
        schedule: what is to be computed; None for a phase without computation.
    """
    return _Execution(phase, Actors(texts, grid), schedule).run()


class _Execution:
    def __init__(self, phase: Phase, actors: Actors, schedule: Schedule | None) -> None:
        self._phase, self._actors, self._schedule = phase, actors, schedule
        self._there: list[set[Action]] = [set() for _ in range(len(actors))]
        """Results that an actor has made or received."""
        self._computed: list[set[Action]] = [set() for _ in range(len(actors))]
        self._standing: dict[Meeting, dict[int, Collective]] = defaultdict(dict)
        self._broken: set[int] = set()
        """Actors that can never go on: their mistake is found."""
        self._findings: list[Finding] = []
        self._ready: deque[int] = deque()

    def run(self) -> list[Finding]:
        """Run everything that can be run, and return what was found."""
        self._ready.extend(range(len(self._actors)))
        while self._ready:
            self._advance(self._ready.popleft())
        stuck = [actor for actor in range(len(self._actors)) if self._actors.at(actor) is not None]
        if stuck:
            free = [actor for actor in stuck if actor not in self._broken]
            Standstill(self._actors, self._arrived, self._blame).judge(free)
            assert self._findings, "whoever stands waits for somebody: one who ended, does not fit, or is in a ring"
        else:
            for actor in range(len(self._actors)):
                self._check_complete(actor)
        return self._findings

    def _arrived(self, actor: int, op: Collective) -> Collection[int]:
        return self._standing[self._actors.meeting(actor, op.group)].keys()

    def _advance(self, actor: int) -> None:
        """Run an actor until it has to wait."""
        while (op := self._actors.at(actor)) is not None and actor not in self._broken:
            if isinstance(op, Compute):
                self._compute(actor, op)
                self._actors.place[actor] += 1
            elif isinstance(op, Collective):
                if not self._meet(actor, op):
                    return
            elif not self._transfer(actor, op):
                return

    def _go_on(self, *actors: int) -> None:
        for actor in actors:
            self._actors.place[actor] += 1
            self._ready.append(actor)

    def _meet(self, actor: int, op: Collective) -> bool:
        """Return whether the collective is over; then all its members have moved on."""
        meeting = self._actors.meeting(actor, op.group)
        if actor not in meeting.members:
            self._broken.add(actor)
            self._blame(actor, f"starts {op}, but is in no such group", op)
            return False
        standing = self._standing[meeting]
        standing[actor] = op
        if len(standing) < len(meeting.members):
            return False
        del self._standing[meeting]
        if len(set(standing.values())) > 1:
            self._mismatch(standing)
            return False
        self._actors.place[actor] += 1
        self._go_on(*(other for other in meeting.members if other != actor))
        return True

    def _mismatch(self, standing: dict[int, Collective]) -> None:
        self._broken |= set(standing)
        num_ranks: Counter[Collective] = Counter()
        for actor, op in standing.items():
            num_ranks[op] += len(self._actors.ranks(actor))
        usual, most = num_ranks.most_common(1)[0]
        if 2 * most > num_ranks.total():
            for actor, op in standing.items():
                if op != usual:
                    self._blame(actor, f"starts {op}, where the other members start {usual}", op)
            return
        for actor, op in standing.items():  # there is no telling who is right
            others = "; ".join(f"{self._actors.name(one)} {other}" for one, other in standing.items() if other != op)
            self._blame(actor, f"starts {op}, but of its group {others}", op)

    def _transfer(self, actor: int, op: Send | Receive) -> bool:
        """Return whether the transfer is over; then both its ends have moved on."""
        other = self._actors.peer(actor, op.peer)
        if other in self._broken or not self._actors.fits(actor, op):
            return False
        sender, receiver = (actor, other) if isinstance(op, Send) else (other, actor)
        if op.carries not in self._there[sender]:
            self._blame(sender, f"sends {op.carries}, which it has not computed, or has sent before", op)
        if op.carries in self._there[receiver]:
            self._blame(receiver, f"receives {op.carries} a second time", op)
        self._there[receiver].add(op.carries)
        if op.carries.kind is Kind.backward:  # a forward's output stays for its backward
            self._there[sender].discard(op.carries)
        self._actors.place[actor] += 1
        self._go_on(other)
        return True

    def _compute(self, actor: int, op: Compute) -> None:
        if self._schedule is None:
            return
        action, there, computed = op.action, self._there[actor], self._computed[actor]
        if action in computed:
            self._blame(actor, f"computes {action} twice", op)
        missing = [str(needed) for needed in self._schedule.inputs_of(action) if needed not in there]
        if missing:
            self._blame(actor, f"computes {action}, but {' and '.join(missing)} is not there", op)
        there.add(action)
        computed.add(action)

    def _check_complete(self, actor: int) -> None:
        """Compare what an actor has computed with the row of its pipeline stage."""
        if self._schedule is None:
            return
        asked = set(self._schedule.rows[self._actors.pipeline_stage(actor)])
        computed = self._computed[actor]
        for what, actions in (
            ("never computes", asked - computed),
            ("computes what is not its own:", computed - asked),
        ):
            if actions:
                first = min(actions, key=lambda action: (action.micro_batch, action.chunk, action.kind))
                more = f" and {len(actions) - 1} more" if len(actions) > 1 else ""
                self._blame(actor, f"{what} {first}{more}", Compute(first))

    def _blame(self, actor: int, what: str, op: Operation | None) -> None:
        place = self._actors.place[actor]
        departure = self._actors.departure(actor)
        message = f"{self._actors.name(actor)}, operation {place + 1:,}: {what}"
        if departure is not None and departure[0] != place:
            message += "\n    its program departs from that of its pipeline stage at operation "
            message += f"{departure[0] + 1:,}: {departure[1]}"
        ranks = tuple(self._actors.ranks(actor)[:_MOST_RANKS].tolist())
        self._findings.append(
            Finding(
                check=f"programs, {self._phase}", message=message, ranks=ranks, operation="" if op is None else str(op)
            )
        )
