"""What a rank's program is made of. No torch.

Members of a group must start equal operations, what they are about among it: a library that sums the gradients of one
layer with those of another, because both are as large, gives wrong numbers and no error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from training.parallel.schedule import Action
from training.rehearsal.grid import Grid, GroupKind


class CollectiveKind(StrEnum):
    """What the members of a group do together."""

    all_reduce = "all-reduce"
    all_gather = "all-gather"
    reduce_scatter = "reduce-scatter"
    broadcast = "broadcast"
    all_to_all = "all-to-all"
    barrier = "barrier"
    new_group = "new_group"
    """Groups are made by all ranks of the world in the same order, members or not."""


@dataclass(frozen=True, slots=True)
class Collective:
    """A call that all members of a group make."""

    kind: CollectiveKind
    group: GroupKind
    numel: int = 0
    """Elements that each member gives."""
    dtype: str = ""
    root: int | None = None
    """Broadcast: place of the sender in the group."""
    members: str = ""
    """new_group: of which group."""
    about: str = ""
    """What travels: parameters, a loss, a norm."""

    def __str__(self) -> str:
        size = f" of {self.numel:,} {self.dtype}" if self.dtype else ""
        root = f" from place {self.root}" if self.root is not None else ""
        members = f" for {self.members}" if self.members else ""
        about = f" ({self.about})" if self.about else ""
        return f"{self.kind}{size} over {self.group}{root}{members}{about}"


@dataclass(frozen=True, slots=True)
class Compute:
    """A pass of one micro-batch through one chunk begins; its collectives follow."""

    action: Action

    def __str__(self) -> str:
        return f"compute {self.action}"


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor between two pipeline stages of a pipeline."""

    carries: Action
    """Whose result travels."""
    peer: int
    """Pipeline stage at the other end."""
    numel: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Send(Transfer):
    """Start to send."""

    def __str__(self) -> str:
        return f"send {self.carries} to pipeline stage {self.peer} ({self.numel:,} {self.dtype})"


@dataclass(frozen=True, slots=True)
class Receive(Transfer):
    """Start to receive."""

    def __str__(self) -> str:
        return f"receive {self.carries} from pipeline stage {self.peer} ({self.numel:,} {self.dtype})"


Operation: TypeAlias = Collective | Compute | Send | Receive
Program: TypeAlias = tuple[Operation, ...]


def all_reduce(group: GroupKind, numel: int, dtype: str, about: str) -> Collective:
    """Return an all-reduce."""
    return Collective(CollectiveKind.all_reduce, group, numel, dtype, about=about)


def world_sum(numel: int, about: str) -> Collective:
    """Return `ProcessGroup.sum` (training/engine/process_group.py): one number more than it is given, the ballot's."""
    return all_reduce(GroupKind.world, numel + 1, "float64", f"{about}, ballot")


def new_groups(grid: Grid, kinds: Sequence[GroupKind]) -> list[Collective]:
    """Return how all ranks make the groups of some kinds, members or not."""
    return [
        Collective(CollectiveKind.new_group, GroupKind.world, members=f"{kind} group {index}")
        for kind in kinds
        for index in range(len(grid.groups(kind)))
    ]
