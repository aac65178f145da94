"""What a rank really starts in its process groups, in order: every collective and transfer with members and size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from training.engine.collectives import COLLECTIVES, TRANSFERS


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call of a method of torch's `ProcessGroup`."""

    kind: str
    ranks: tuple[int, ...]
    """Members of the group; of a transfer (sender, receiver)."""
    numel: int
    """Elements of the tensors that this rank gives (of a receive: takes)."""
    dtype: str
    root: int | None = None


class ProgramRecorder:
    """Records what all groups of this process start, between `watch` and what it returns."""

    def __init__(self) -> None:
        self.calls: list[Recorded] = []

    def watch(self) -> Callable[[], None]:
        groups: Any = c10d.ProcessGroup
        bound = {name: getattr(groups, name) for name in (*COLLECTIVES, *TRANSFERS)}
        unbound = {name: vars(groups)[name] for name in bound}
        new_group = dist.new_group
        for name, original in bound.items():
            setattr(groups, name, self._recorded(name, original))

        def recorded_new_group(ranks: Any = None, *arguments: Any, **options: Any) -> Any:
            members = tuple(ranks) if ranks is not None else tuple(range(dist.get_world_size()))
            self.calls.append(Recorded("new_group", members, 0, ""))
            return new_group(ranks, *arguments, **options)

        dist.new_group = recorded_new_group

        def end() -> None:
            for name, original in unbound.items():
                setattr(groups, name, original)
            dist.new_group = new_group

        return end

    def _recorded(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, *arguments: Any, **options: Any) -> Any:
            ranks = tuple(dist.get_process_group_ranks(group))
            given = [tensor for value in arguments for tensor in _tensors(value)]
            root = None
            if name in TRANSFERS:
                me, peer = ranks[group.rank()], ranks[arguments[1]]
                ranks = (me, peer) if name == "send" else (peer, me)
            else:
                opts = next((value for value in arguments if hasattr(value, "rootRank")), None)
                root = ranks[opts.rootRank] if opts is not None else None
                if name in ("broadcast", "reduce") and opts is None:
                    root = ranks[arguments[1]]
            sizes = [tensor.numel() for tensor in _given(name, arguments)]
            self.calls.append(Recorded(name, ranks, sum(sizes), str(given[0].dtype) if given else "", root))
            return original(group, *arguments, **options)

        return call


def _given(name: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors that this rank contributes: an all-gather's output comes first among its arguments."""
    tensors = [_tensors(value) for value in arguments if _tensors(value)]
    if not tensors:
        return []
    return tensors[1] if len(tensors) > 1 else tensors[0]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return []
