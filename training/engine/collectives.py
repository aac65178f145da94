"""What this process asks of its peers, seen from outside: which collective, its number, and how long it is waited for.

All of it (ours, DeepSpeed's, torch's own) passes through methods of two C++ classes (torch 2.13,
torch/csrc/distributed/c10d/init.cpp): `ProcessGroup` starts something, `Work.wait` waits for it. Both are watched
there, so that no caller can be forgotten; tests/unit/engine/test_collectives.py says which method has gone. `new_group`
meets its peers in the store and is counted as a collective of all ranks.

Nothing of this changes what is sent. A wait is the host's: on CPU all there is, on accelerators only where the host
waits for the work itself, since NCCL's `wait` puts an order into a stream and returns.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

COLLECTIVES = (
    "all_gather_single",
    "all_gather_single_coalesced",
    "all_to_all_single",
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "allreduce",
    "allreduce_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "gather",
    "monitored_barrier",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "scatter",
    "_allgather_base",
    "_reduce_scatter_base",
)
"""Methods of a group that all its ranks call."""
TRANSFERS = ("send", "recv")
"""Methods that two ranks call, one each."""
_FLIGHT_RECORDERS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")
"""The first is in builds with NCCL only."""
_NEW_GROUP = "new_group"


class Track:
    """What one thread does; written by it alone, read by others."""

    def __init__(self) -> None:
        self.last = ""
        """The last thing started, such as "allreduce #12 (ranks 0-7)"."""
        self.waits = False
        """Whether it is waiting for peers now."""
        self.waited_seconds = 0.0
        """So long it has waited in all."""


class CollectiveLog:
    """Counts what is started in every group, and times what is waited for. Made by the training thread, for it.

    Other threads (one writes checkpoints, in a group of its own) share a second track.
    """

    def __init__(self) -> None:
        self.training = Track()
        self.other = Track()
        self.started: dict[str, int] = {}
        """"<group> <ranks>" -> how many were started in it; "<group> 3>4" for transfers from rank 3 to rank 4."""
        self._training_thread = threading.get_ident()
        self._keys: dict[str, str] = {}
        self._members: dict[str, list[int]] = {}

    def watch(self) -> Callable[[], None]:
        """Watch all groups of this process from now on; returns what ends that."""
        groups: Any = c10d.ProcessGroup
        originals = {name: getattr(groups, name) for name in (*COLLECTIVES, *TRANSFERS)}
        wait, new_group = c10d.Work.wait, dist.new_group
        # What getattr gives of an extension's class is no method any more: put back, it would get no `self`.
        unbound = {name: vars(groups)[name] for name in originals}
        unbound_wait = vars(c10d.Work)["wait"]
        for name in COLLECTIVES:
            setattr(groups, name, self._collective(name, originals[name]))
        for name in TRANSFERS:
            setattr(groups, name, self._transfer(name, originals[name]))
        c10d.Work.wait = self._wait(wait)
        dist.new_group = self._new_group(new_group)

        def end() -> None:
            for name, original in unbound.items():
                setattr(groups, name, original)
            c10d.Work.wait, dist.new_group = unbound_wait, new_group

        return end

    def _track(self) -> Track:
        return self.training if threading.get_ident() == self._training_thread else self.other

    def _note(self, track: Track, what: str, key: str) -> None:
        number = self.started[key] = self.started.get(key, 0) + 1
        track.last = f"{what} #{number} (ranks {key.partition(' ')[2]})"

    def _collective(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, *arguments: Any, **options: Any) -> Any:
            group_name = group.group_name
            key = self._keys.get(group_name)
            if key is None:
                key = self._keys[group_name] = f"{group_name} {shown_ranks(self._ranks(group))}"
            self._note(self._track(), name, key)
            return original(group, *arguments, **options)

        return call

    def _transfer(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, tensors: Any, peer: int, *arguments: Any, **options: Any) -> Any:
            ranks = self._ranks(group)
            me, other = ranks[group.rank()], ranks[peer]
            pair = f"{me}>{other}" if name == "send" else f"{other}>{me}"
            self._note(self._track(), name, f"{group.group_name} {pair}")
            return original(group, tensors, peer, *arguments, **options)

        return call

    def _ranks(self, group: Any) -> list[int]:
        ranks = self._members.get(group.group_name)
        if ranks is None:
            ranks = self._members[group.group_name] = dist.get_process_group_ranks(group)
        return ranks

    def _wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Any, *arguments: Any, **options: Any) -> Any:
            return self._timed(lambda: original(work, *arguments, **options))

        return wait

    def _new_group(self, original: Callable[..., Any]) -> Callable[..., Any]:
        everyone = f"{_NEW_GROUP} {shown_ranks(range(dist.get_world_size()))}"

        def new_group(*arguments: Any, **options: Any) -> Any:
            self._note(self._track(), _NEW_GROUP, everyone)
            return self._timed(lambda: original(*arguments, **options))

        return new_group

    def _timed(self, call: Callable[[], Any]) -> Any:
        track, began = self._track(), time.perf_counter()
        track.waits = True
        try:
            return call()
        finally:
            track.waits = False
            track.waited_seconds += time.perf_counter() - began


def flight_record() -> bytes | None:
    """Return torch's own record of this process's last collectives as JSON; None where torch keeps none."""
    for name in _FLIGHT_RECORDERS:
        dump = getattr(c10d, name, None)
        if dump is not None:
            return dump()
    return None


def shown_ranks(ranks: Sequence[int]) -> str:
    """Return ranks as text: "0-7", "0-56/8" (every eighth), "3", or "0,1,5"."""
    if len(ranks) > 1:
        step = ranks[1] - ranks[0]
        if step > 0 and list(ranks) == list(range(ranks[0], ranks[-1] + 1, step)):
            return f"{ranks[0]}-{ranks[-1]}" + (f"/{step}" if step > 1 else "")
    return ",".join(map(str, ranks))
