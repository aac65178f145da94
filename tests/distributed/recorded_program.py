"""What a rank really starts in its process groups, in order, beside what the rehearsal says that it starts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from training.engine.collectives import COLLECTIVES, TRANSFERS
from training.rehearsal.grid import Grid, GroupKind
from training.rehearsal.operations import Collective, CollectiveKind, Compute, Program, Send

METHODS = {
    CollectiveKind.all_reduce: "allreduce",
    CollectiveKind.all_gather: "all_gather_single",
    CollectiveKind.reduce_scatter: "reduce_scatter_single",
    CollectiveKind.broadcast: "broadcast",
    CollectiveKind.all_to_all: "all_to_all_single",
    CollectiveKind.barrier: "barrier",
    CollectiveKind.new_group: "new_group",
}
"""Methods of torch's `ProcessGroup` that DeepSpeed 0.19.8 and our code come to."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a method of torch's `ProcessGroup`."""

    method: str
    ranks: tuple[int, ...]
    """Members of the group; of a transfer (sender, receiver)."""
    numel: int
    """Elements that this rank gives; of a receive, takes."""
    dtype: str
    root: int | None = None


class ProgramRecorder:
    """Records what all groups of this process start, while it is watching."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __enter__(self) -> "ProgramRecorder":
        groups: Any = c10d.ProcessGroup
        bound = {name: getattr(groups, name) for name in (*COLLECTIVES, *TRANSFERS)}
        self._unbound = {name: vars(groups)[name] for name in bound}
        self._new_group = dist.new_group
        for name, original in bound.items():
            setattr(groups, name, self._recorded(name, original))
        dist.new_group = self._recorded_new_group
        return self

    def __exit__(self, *_error: object) -> None:
        for name, original in self._unbound.items():
            setattr(c10d.ProcessGroup, name, original)
        dist.new_group = self._new_group

    def take(self) -> list[Call]:
        """Return what was recorded since the last time."""
        taken, self.calls = self.calls, []
        return taken

    def _recorded_new_group(self, ranks: Any = None, *arguments: Any, **options: Any) -> Any:
        members = range(dist.get_world_size()) if ranks is None else ranks
        self.calls.append(Call("new_group", tuple(members), 0, ""))
        return self._new_group(ranks, *arguments, **options)

    def _recorded(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, *arguments: Any, **options: Any) -> Any:
            ranks = tuple(dist.get_process_group_ranks(group))
            root = None
            if name in TRANSFERS:
                me, peer = ranks[group.rank()], ranks[arguments[1]]
                ranks = (me, peer) if name == "send" else (peer, me)
            elif name == "broadcast":
                (told,) = [value for value in arguments if hasattr(value, "rootRank")]
                root = ranks[told.rootRank]
            given = _given(arguments)
            numel = sum(tensor.numel() for tensor in given)
            dtype = str(given[0].dtype).removeprefix("torch.") if given else ""
            self.calls.append(Call(name, ranks, numel, dtype, root))
            return original(group, *arguments, **options)

        return call


def _given(arguments: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors that a rank gives: where there is an output too, it comes first."""
    tensors = [found for value in arguments if (found := _tensors(value))]
    return tensors[min(1, len(tensors) - 1)] if tensors else []


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


def predicted(program: Program, grid: Grid, rank: int) -> list[Call]:
    """Return the calls that one rank's program says it makes."""
    rows = {
        op.group: next(row for row in grid.groups(op.group).tolist() if rank in row)
        for op in program
        if isinstance(op, Collective)
    }
    width = grid.world_size // grid.pipeline
    calls = []
    for op in program:
        if isinstance(op, Compute):
            continue
        if not isinstance(op, Collective):
            peer = op.peer * width + rank % width
            pair = (rank, peer) if isinstance(op, Send) else (peer, rank)
            calls.append(Call("send" if isinstance(op, Send) else "recv", pair, op.numel, op.dtype))
        elif op.kind is CollectiveKind.new_group:
            kind, _, number = op.members.rpartition(" group ")
            members = tuple(grid.groups(GroupKind(kind))[int(number)].tolist())
            calls += [Call("new_group", members, 0, "")] if len(members) > 1 else []
        else:
            row = rows[op.group]
            root = None if op.root is None else row[op.root]
            calls.append(Call(METHODS[op.kind], tuple(row), op.numel, op.dtype, root))
    return calls
