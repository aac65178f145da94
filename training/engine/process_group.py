"""The processes of a job: start them as one group, agree, and tell every rank the same text."""

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch.distributed import distributed_c10d

from training.engine import rendezvous
from training.engine.deepspeed_private import skip_shared_memory_op


class Ballot:
    """A yes or no of every rank that rides on each `ProcessGroup.sum`, so that asking costs no collective of its own.

    A question once per step must not cost one: gloo's `agree` goes round a ring of all ranks. Here it is one more
    number in an all-reduce that the step does anyway.
    """

    def __init__(self, mine: Callable[[], bool] = lambda: False) -> None:
        self.mine = mine
        """What this rank says now."""
        self.any_yes = False
        """Whether any rank said yes in the latest sum: equal on every rank until the next one."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process's place in the job, and collectives over all of it that run on CPU tensors.

    Agreement and text go through a gloo group of their own, so that no device collective ever waits for a disk.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    cpu_group: dist.ProcessGroup
    ballot: Ballot = field(default_factory=Ballot)

    def agree(self, ok: bool) -> bool:
        """Return True on every rank if and only if every rank passed True."""
        vote = torch.tensor([int(ok)])
        dist.all_reduce(vote, op=dist.ReduceOp.MIN, group=self.cpu_group)
        return bool(vote.item())

    def sum(self, values: list[float]) -> list[float]:
        """Return the element-wise sum over all ranks, in float64.

        Every step calls it, so it takes the device's collective: gloo's goes round a ring of all ranks.
        """
        total = torch.tensor([*values, float(self.ballot.mine())], dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        *sums, num_yes = total.tolist()
        self.ballot.any_yes = num_yes > 0
        return sums

    def largest(self, values: list[int]) -> list[int]:
        """Return the element-wise largest over all ranks, of 64-bit integers; on the device, as `sum`."""
        found = torch.tensor(values, dtype=torch.int64, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found.tolist()

    def sum_integers(self, values: list[int]) -> list[int]:
        """Return the element-wise sum over all ranks, modulo 2^64; on the CPU."""
        total = torch.tensor([_signed(value) for value in values], dtype=torch.int64)
        dist.all_reduce(total, group=self.cpu_group)
        return [value % 2**64 for value in total.tolist()]

    def forget_peak_memory(self) -> None:
        """Let `peak_memory_bytes` count from now."""
        if self.device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self.device)

    def peak_memory_bytes(self) -> float | None:
        """Return the most that tensors have taken of this rank's device; None on CPU, where torch does not count."""
        return None if self.device.type == "cpu" else torch.accelerator.max_memory_allocated(self.device)

    def with_own_group(self, timeout_seconds: int) -> "ProcessGroup":
        """Return the same ranks over a new CPU group with its own time limit; collective.

        For a thread that waits for disks: neither it nor the training thread ever sees the other's collectives.
        """
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        assert isinstance(group, dist.ProcessGroup)  # every rank is a member
        return replace(self, cpu_group=group)

    def gather_text(self, text: str) -> list[str]:
        """Return every rank's text on every rank, by rank. Bytes are sent, nothing is unpickled."""
        content = text.encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(content)]), group=self.cpu_group)
        longest = max(1, *(int(size) for size in sizes))
        mine = torch.tensor(list(content.ljust(longest, b" ")), dtype=torch.uint8)
        texts = [torch.empty_like(mine) for _ in sizes]
        dist.all_gather(texts, mine, group=self.cpu_group)
        return [bytes(t[: int(size)].tolist()).decode() for t, size in zip(texts, sizes, strict=True)]

    def broadcast_text(self, text: str | None) -> str:
        """Return rank 0's text on every rank (others pass None). Bytes are sent, nothing is unpickled."""
        content = torch.frombuffer(bytearray((text or "").encode()), dtype=torch.uint8) if text else torch.empty(0)
        size = torch.tensor([content.numel()])
        dist.broadcast(size, src=0, group=self.cpu_group)
        buffer = content.to(torch.uint8) if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        if size:
            dist.broadcast(buffer, src=0, group=self.cpu_group)
        return bytes(buffer.tolist()).decode()


def _signed(value: int) -> int:
    """Return the number in [-2^63, 2^63) that is the same modulo 2^64."""
    return (value + 2**63) % 2**64 - 2**63


def my_group(groups: Iterable[Sequence[int]], *, rank: int) -> dist.ProcessGroup | None:
    """Return the group that a rank is in, of groups that no two of share a rank, or None; collective over the world."""
    mine: dist.ProcessGroup | None = None
    for ranks in groups:
        group = dist.new_group(list(ranks))
        if rank in ranks:
            assert isinstance(group, dist.ProcessGroup)
            mine = group
    return mine


def groups_within() -> list[dist.ProcessGroup]:
    """Return the groups that this rank is in, but that of the whole job, oldest first.

    torch has no public list of them (2.13.0, distributed/distributed_c10d.py, `_world`).
    """
    return [group for group in distributed_c10d._world.pg_map if group is not dist.group.WORLD]


def leave_groups(groups: Sequence[dist.ProcessGroup]) -> None:
    """Leave groups, the newest first; all their ranks do it. Their communicators and threads end.

    An idle gloo group is not free: its thread wakes a hundred times per second (gloo, transport/tcp/loop.cc).
    """
    for group in reversed(groups):
        dist.destroy_process_group(group)


def launched_world() -> tuple[int, int]:
    """Return (number of nodes, processes per node) as the launcher's environment tells; (1, 1) without a launcher."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    # torchrun and accelerate set LOCAL_WORLD_SIZE, DeepSpeed's launcher LOCAL_SIZE.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size)))
    return world_size // local, local


def start(timeout_seconds: int, ballot: Ballot | None = None) -> ProcessGroup:
    """Join the job's processes; collective. A process started without a launcher becomes a job of one rank."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(port)
    timeout = timedelta(seconds=timeout_seconds)
    skip_shared_memory_op()
    accelerator = get_accelerator()
    assert accelerator is not None
    local_rank = int(os.environ["LOCAL_RANK"])
    accelerator.set_device(local_rank)
    _meet(accelerator.communication_backend_name(), accelerator.device_name(), local_rank, timeout)
    deepspeed.init_distributed(accelerator.communication_backend_name(), timeout=timeout, verbose=False)
    cpu_group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(cpu_group, dist.ProcessGroup)  # every rank is a member
    return ProcessGroup(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        local_rank=local_rank,
        device=torch.device(accelerator.current_device_name()),
        cpu_group=cpu_group,
        ballot=ballot or Ballot(),
    )


def _meet(backend: str, device: str, local_rank: int, timeout: timedelta) -> None:
    """Make torch's process group over a store that listens on the job's interface only; DeepSpeed then takes it."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    meeting = rendezvous.place(os.environ, num_nodes=launched_world()[0])
    rendezvous.tie_gloo_to(meeting)
    dist.init_process_group(
        backend,
        store=rendezvous.store(meeting, rank=rank, world_size=world_size, timeout=timeout),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        # As DeepSpeed 0.19.8 does it (comm/torch.py) where NCCL, or RCCL, connects devices: its communicators are bound
        # to one at the start. One rank alone has no peer to be bound for.
        device_id=torch.device(device, local_rank) if backend == "nccl" and world_size > 1 else None,
    )


def stop() -> None:
    """Leave the job's process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
