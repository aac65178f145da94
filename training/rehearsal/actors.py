"""15,000 ranks as a few actors: ranks that run the same text among the same neighbours always stand at the same place.

Ranks are put into classes such that all ranks of a class run the same text and have, in every group, members of the
same classes: the coarsest equitable partition, by colour refinement (Weisfeiler and Leman, 1968). One rank of each
class is run for all of it. A single rank that deviates is a class of its own, and so are, where it matters, the ranks
that share groups with it. No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.rehearsal.grid import Grid, GroupKind, Ranks, shown
from training.rehearsal.operations import Collective, Operation, Receive, Send
from training.rehearsal.program import Texts


def rank_classes(text_of_rank: Ranks, groups: Mapping[GroupKind, Ranks]) -> NDArray[np.intp]:
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
class Meeting:
    """Groups of one kind whose members are of the same classes: they do the same things at the same time."""

    kind: GroupKind
    members: frozenset[int]
    """Actors."""


class Actors:
    """The ranks' programs by class, and how far each has come. An actor is the number of its class."""

    def __init__(self, texts: Texts, grid: Grid) -> None:
        kinds = {op.group for text in texts.texts for op in text if isinstance(op, Collective)}
        self.grid = grid
        self._groups = {kind: grid.groups(kind) for kind in sorted(kinds | {GroupKind.pipeline})}
        self._classes = rank_classes(texts.text_of_rank, self._groups)
        self._ranks = [
            np.flatnonzero(self._classes == number).astype(np.int32) for number in range(self._classes.max() + 1)
        ]
        self._all_texts = texts
        self._texts = [texts.of(int(ranks[0])) for ranks in self._ranks]
        self._meetings: dict[tuple[int, GroupKind], Meeting] = {}
        self.place = [0] * len(self._ranks)
        """Operations that each has done."""

    def __len__(self) -> int:
        return len(self._ranks)

    def at(self, actor: int) -> Operation | None:
        """Return the operation that an actor stands at; None at its end."""
        text = self._texts[actor]
        return text[self.place[actor]] if self.place[actor] < len(text) else None

    def ranks(self, actor: int) -> Ranks:
        """Return the ranks of an actor."""
        return self._ranks[actor]

    def pipeline_stage(self, actor: int) -> int:
        """Return the pipeline stage of an actor's first rank."""
        return self.grid.pipeline_stage_of(int(self._ranks[actor][0]))

    def meeting(self, actor: int, kind: GroupKind) -> Meeting:
        """Return who meets in an actor's groups of a kind; the actor is not among them if it has no such group."""
        key = actor, kind
        if key not in self._meetings:
            rows = self._groups[kind]
            members = rows[(rows == self._ranks[actor][0]).any(axis=1)]
            self._meetings[key] = Meeting(kind, frozenset(self._classes[members.ravel()].tolist()))
        return self._meetings[key]

    def peer(self, actor: int, pipeline_stage: int) -> int:
        """Return the actor at a place of an actor's pipeline."""
        width = self.grid.world_size // self.grid.pipeline
        return int(self._classes[pipeline_stage * width + int(self._ranks[actor][0]) % width])

    def fits(self, actor: int, op: Send | Receive) -> bool:
        """Return whether the peer of a transfer stands at its other end."""
        wanted = Receive if isinstance(op, Send) else Send
        return self.at(self.peer(actor, op.peer)) == wanted(op.carries, self.pipeline_stage(actor), op.numel, op.dtype)

    def name(self, actor: int) -> str:
        """Return an actor's ranks, for people."""
        ranks = self._ranks[actor]
        if len(ranks) == 1:
            return self.grid.name(int(ranks[0]))
        first, last = (self.grid.pipeline_stage_of(int(ranks[end])) for end in (0, -1))
        stages = f"pipeline stage {first}" if first == last else f"pipeline stages {first} to {last}"
        return f"{shown(ranks)} ({stages})"

    def departure(self, actor: int) -> tuple[int, str] | None:
        """Return where an actor's text is first not that of most ranks of its pipeline stage, and the two operations.

        None if it is nowhere.
        """
        stage = self.pipeline_stage(actor)
        width = self.grid.world_size // self.grid.pipeline
        of_stage = self._all_texts.text_of_rank[stage * width : (stage + 1) * width]
        usual = self._all_texts.texts[int(np.bincount(of_stage).argmax())]
        mine = self._texts[actor]
        for number, (has, others) in enumerate(zip(mine, usual, strict=False)):
            if has != others:
                return number, f"{has}, not {others}"
        if len(mine) == len(usual):
            return None
        return min(len(mine), len(usual)), f"it has {len(mine):,} operations, not {len(usual):,}"
