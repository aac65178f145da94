"""Runs all ranks' programs against each other, as strictly as can be, and names what does not fit. No torch.

Every operation blocks: a collective until all members of its group stand at it, a send until its peer stands at the
matching receive (`training.parallel.program.check_programs`). Programs that end under these rules end under any.

15,000 ranks are not run one by one. Ranks are put into classes such that all ranks of a class run the same text and
have, in every group, members of the same classes (the coarsest equitable partition: colour refinement, Weisfeiler and
Leman, 1968). Ranks of one class always stand at the same place, so one of them is run for all; a single rank that
deviates is a class of its own, and so are, where it matters, those that share groups with it.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.parallel.schedule import Action, Kind, Schedule
from training.rehearsal.findings import Finding
from training.rehearsal.grid import Grid, GroupKind, shown
from training.rehearsal.operations import Collective, Compute, Operation, Receive, Send
from training.rehearsal.program import Phase, Texts

_MOST_CYCLES = 4
"""Deadlocks named in one phase; a hang spreads to everybody."""


def execute(phase: Phase, texts: Texts, grid: Grid, schedule: Schedule | None) -> list[Finding]:
    """Return what keeps the programs of one phase from ending, or from computing what the schedule asks for.

    Args:
        phase: for messages.
        texts: what each rank runs.
        grid: who is in which group.
        schedule: what is to be computed; None for a phase without computation.
    """
    return _Execution(phase, texts, grid, schedule).run()


def rank_classes(text_of_rank: NDArray[np.int32], groups: dict[GroupKind, NDArray[np.int32]]) -> NDArray[np.intp]:
    """Return the class of every rank: the coarsest partition in which a class tells the classes of all its groups.

    Args:
        text_of_rank: ranks with different numbers are never in one class.
        groups: the groups that operations name. In a pipeline the places count, in other groups the members.
    """
    classes = np.unique(text_of_rank, return_inverse=True)[1]
    while True:
        signature = [classes]
        for kind, rows in groups.items():
            members = classes[rows] if kind is GroupKind.pipeline else np.sort(classes[rows], axis=1)
            group_class = np.unique(members, axis=0, return_inverse=True)[1].ravel()
            of_rank = np.full(len(text_of_rank), -1, np.intp)
            of_rank[rows] = group_class[:, None]
            signature.append(of_rank)
        refined = np.unique(np.stack(signature, axis=1), axis=0, return_inverse=True)[1].ravel()
        if refined.max() == classes.max():
            return classes
        classes = refined


@dataclass(frozen=True, slots=True)
class _Meeting:
    """Groups of one kind whose members are of the same classes: they do the same things at the same time."""

    kind: GroupKind
    classes: frozenset[int]


class _Execution:
    def __init__(self, phase: Phase, texts: Texts, grid: Grid, schedule: Schedule | None) -> None:
        self._phase, self._grid, self._schedule = phase, grid, schedule
        kinds = {op.group for text in texts.texts for op in text if isinstance(op, Collective)}
        self._groups = {kind: grid.groups(kind) for kind in sorted(kinds | {GroupKind.pipeline})}
        self._classes = rank_classes(texts.text_of_rank, self._groups)
        self._sizes = np.bincount(self._classes)
        number = len(self._sizes)
        self._first = np.zeros(number, np.int64)
        self._first[self._classes[::-1]] = np.arange(grid.world_size)[::-1]
        self._texts = [texts.of(int(rank)) for rank in self._first]
        self._all_texts = texts
        self._place = [0] * number
        self._results: list[set[Action]] = [set() for _ in range(number)]
        """What is there to be computed with or sent, by class."""
        self._computed: list[set[Action]] = [set() for _ in range(number)]
        self._standing: dict[_Meeting, dict[int, Collective]] = defaultdict(dict)
        self._meetings: dict[tuple[int, GroupKind], _Meeting] = {}
        self._findings: list[Finding] = []
        self._broken: set[int] = set()
        """Classes that can never go on: their mistake is found."""

    def run(self) -> list[Finding]:
        """Run everything that can be run, and return what was found."""
        ready = deque(range(len(self._texts)))
        while ready:
            self._advance(ready.popleft(), ready)
        self._judge_those_that_stand()
        if not self._stuck():
            for one in range(len(self._texts)):
                self._check_complete(one)
        return self._findings

    def _advance(self, one: int, ready: "deque[int]") -> None:
        """Run a class until it has to wait; put others that may go on now into `ready`."""
        while (op := self._at(one)) is not None and one not in self._broken:
            if isinstance(op, Compute):
                self._compute(one, op.action)
            elif isinstance(op, Collective):
                if not self._meet(one, op, ready):
                    return
                continue
            elif not self._transfer(one, op, ready):
                return
            self._place[one] += 1

    def _meet(self, one: int, op: Collective, ready: "deque[int]") -> bool:
        """Return whether the collective is over; then all its members have moved on."""
        meeting = self._meeting(one, op.group)
        if one not in meeting.classes:
            self._broken.add(one)
            self._blame(one, f"starts {op} in a group ({op.group}) that it is not a member of", op)
            return False
        standing = self._standing[meeting]
        standing[one] = op
        if len(standing) < len(meeting.classes):
            return False
        del self._standing[meeting]
        if len(set(standing.values())) > 1:
            self._mismatch(meeting, standing)
            return False
        for other in meeting.classes:
            self._place[other] += 1
            if other != one:
                ready.append(other)
        return True

    def _transfer(self, one: int, op: Send | Receive, ready: "deque[int]") -> bool:
        other = self._peer(one, op.peer)
        meets = self._at(other)
        sender, receiver = (one, other) if isinstance(op, Send) else (other, one)
        if other in self._broken or not self._fits(one, op, meets):
            return False
        assert isinstance(meets, Send | Receive)
        if op.carries not in self._results[sender]:
            self._blame(sender, f"sends {op.carries}, which it has not computed or has sent before", op)
        if op.carries in self._results[receiver]:
            self._blame(receiver, f"receives {op.carries} a second time", op)
        self._results[receiver].add(op.carries)
        if op.carries.kind is Kind.backward:
            self._results[sender].discard(op.carries)
        self._place[other] += 1
        ready.append(other)
        return True

    def _fits(self, one: int, op: Send | Receive, meets: Operation | None) -> bool:
        wanted = Receive if isinstance(op, Send) else Send
        mine = self._grid.pipeline_stage_of(int(self._first[one]))
        return meets == wanted(op.carries, mine, op.numel, op.dtype)

    def _compute(self, one: int, action: Action) -> None:
        results = self._results[one]
        if self._schedule is None:
            return
        computed = self._computed[one]
        if action in computed:
            self._blame(one, f"computes {action} twice", Compute(action))
        missing = [str(needed) for needed in self._schedule.inputs_of(action) if needed not in results]
        if missing:
            self._blame(one, f"computes {action}, but {' and '.join(missing)} is not there", Compute(action))
        results.add(action)
        computed.add(action)

    def _check_complete(self, one: int) -> None:
        if self._schedule is None:
            return
        stage = self._grid.pipeline_stage_of(int(self._first[one]))
        asked = {action for action in self._schedule.rows[stage]}
        computed = self._computed[one]
        for what, actions in (
            ("never computes", asked - computed),
            ("computes what is not its own:", computed - asked),
        ):
            if actions:
                first = min(actions, key=lambda action: (action.micro_batch, action.chunk, action.kind))
                more = f" and {len(actions) - 1} more" if len(actions) > 1 else ""
                self._blame(one, f"{what} {first}{more}", Compute(first))

    def _mismatch(self, meeting: _Meeting, standing: dict[int, Collective]) -> None:
        self._broken |= set(standing)
        ranks_of: dict[Collective, int] = defaultdict(int)
        for other, op in standing.items():
            ranks_of[op] += int(self._sizes[other])
        usual = max(ranks_of, key=lambda op: ranks_of[op])
        for other, op in standing.items():
            if op != usual:
                self._blame(
                    other,
                    f"starts {op} in its group ({meeting.kind}), where the other members start {usual}",
                    op,
                )

    def _judge_those_that_stand(self) -> None:
        """Name what those wait for that cannot go on: whoever ended without it, another operation, or each other."""
        stuck = [one for one in self._stuck() if one not in self._broken]
        named: set[int] = set()
        for one in stuck:
            ended = [other for other in self._awaited(one) if self._at(other) is None]
            facing = self._facing(one)
            if facing is not None and facing not in named:
                op, meets = self._at(one), self._at(facing)
                self._blame(
                    self._rarer(one, facing),
                    f"do not fit: {self._who(one)} stands at: {op}; {self._who(facing)} at: {meets}",
                    op,
                )
                named |= {one, facing}
            elif ended and not named & set(ended):
                self._blame(
                    ended[0], f"has ended, and {self._who(one)} waits for it at: {self._at(one)}", self._at(one)
                )
                named |= {one, *ended}
        cycles = 0
        while cycles < _MOST_CYCLES and (cycle := self._cycle([one for one in stuck if one not in named])):
            waits = "; ".join(f"{self._who(one)} stands at: {self._at(one)}" for one in cycle)
            odd = min(cycle, key=lambda one: self._sizes[one])
            self._blame(odd, f"wait for each other: {waits}", self._at(odd))
            named |= set(cycle)
            cycles += 1

    def _cycle(self, stuck: Sequence[int]) -> list[int]:
        """Return classes that wait for each other in a ring, or []."""
        allowed = set(stuck)
        for begin in stuck:
            path, one = [begin], begin
            while True:
                following = [other for other in self._awaited(one) if other in allowed]
                if not following:
                    break
                one = min(following, key=lambda other: self._sizes[other])
                if one in path:
                    return path[path.index(one) :]
                path.append(one)
        return []

    def _awaited(self, one: int) -> list[int]:
        """Return the classes that a class waits for."""
        op = self._at(one)
        if isinstance(op, Collective):
            meeting = self._meeting(one, op.group)
            return sorted(meeting.classes - self._standing[meeting].keys())
        return [self._peer(one, op.peer)] if isinstance(op, Send | Receive) else []

    def _facing(self, one: int) -> int | None:
        """Return the peer that stands at a transfer with this class, the other way round, that does not fit."""
        op = self._at(one)
        if not isinstance(op, Send):
            return None
        other = self._peer(one, op.peer)
        meets = self._at(other)
        return other if isinstance(meets, Receive) and self._peer(other, meets.peer) == one else None

    def _rarer(self, one: int, other: int) -> int:
        return one if self._sizes[one] < self._sizes[other] else other

    def _blame(self, one: int, what: str, op: Operation | None) -> None:
        ranks = np.flatnonzero(self._classes == one)
        departure = self._departure(one)
        place = f"operation {self._place[one] + 1} of {len(self._texts[one])}"
        self._findings.append(
            Finding(
                check=f"programs: {self._phase}",
                message=f"{self._who(one)}, {place}: {what}{departure}",
                ranks=tuple(ranks[:16].tolist()),
                operation=str(op),
            )
        )

    def _departure(self, one: int) -> str:
        """Return where a class's text is not that of most ranks of its pipeline stage; "" if it is."""
        stage = self._grid.pipeline_stage_of(int(self._first[one]))
        width = self._grid.world_size // self._grid.pipeline
        texts = self._all_texts.text_of_rank[stage * width : (stage + 1) * width]
        usual = self._all_texts.texts[int(np.bincount(texts).argmax())]
        mine = self._texts[one]
        for number, (has, others) in enumerate(zip(mine, usual, strict=False)):
            if has != others:
                return f"\n    its program departs from its pipeline stage's at operation {number + 1}: {has}, not {others}"
        if len(mine) != len(usual):
            return f"\n    its program has {len(mine):,} operations, its pipeline stage's {len(usual):,}"
        return ""

    def _who(self, one: int) -> str:
        ranks = np.flatnonzero(self._classes == one)
        if len(ranks) == 1:
            return self._grid.name(int(ranks[0]))
        stages = sorted({self._grid.pipeline_stage_of(int(rank)) for rank in (ranks[0], ranks[-1])})
        return f"{shown(ranks)} (pipeline stage {'-'.join(map(str, stages))})"

    def _at(self, one: int) -> Operation | None:
        text = self._texts[one]
        return text[self._place[one]] if self._place[one] < len(text) else None

    def _stuck(self) -> list[int]:
        return [one for one in range(len(self._texts)) if self._at(one) is not None]

    def _meeting(self, one: int, kind: GroupKind) -> _Meeting:
        key = one, kind
        if key not in self._meetings:
            rows = self._groups[kind]
            members = rows[(rows == self._first[one]).any(axis=1)]  # of one group, or of none
            self._meetings[key] = _Meeting(kind, frozenset(self._classes[members.ravel()].tolist()))
        return self._meetings[key]

    def _peer(self, one: int, pipeline_stage: int) -> int:
        width = self._grid.world_size // self._grid.pipeline
        return int(self._classes[pipeline_stage * width + int(self._first[one]) % width])
