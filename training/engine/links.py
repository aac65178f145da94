"""Point-to-point transfers between the ranks of one pipeline, as its program orders them."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from training.parallel.program import Receive, Send
from training.parallel.schedule import Action


class Links:
    """Posts sends and receives without waiting; hands out a received tensor when it is needed.

    Transfers are tagged by what they carry. gloo matches tags; NCCL ignores them and matches in order, which both ends
    agree on because all programs of a pipeline are cut from one list (training/parallel/program.py).
    """

    def __init__(self, group: dist.ProcessGroup, ranks: Sequence[int], *, num_chunks: int) -> None:
        self._group = group
        self._ranks = ranks
        self._num_chunks = num_chunks
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._arriving: dict[Action, tuple[dist.Work, Tensor]] = {}

    def send(self, transfer: Send, tensor: Tensor) -> None:
        """Start to send; the tensor is kept until it has left."""
        self._sent = [(work, kept) for work, kept in self._sent if not work.is_completed()]
        tensor = tensor.detach().contiguous()
        peer = self._ranks[transfer.peer_stage]
        self._sent.append((_posted(dist.isend(tensor, dst=peer, group=self._group, tag=self._tag(transfer))), tensor))

    def receive(self, transfer: Receive, buffer: Tensor) -> None:
        """Start to receive into a buffer."""
        peer = self._ranks[transfer.peer_stage]
        work = _posted(dist.irecv(buffer, src=peer, group=self._group, tag=self._tag(transfer)))
        self._arriving[transfer.produced_by] = (work, buffer)

    def take(self, produced_by: Action) -> Tensor:
        """Return what an action on another rank has produced, once it has arrived."""
        work, buffer = self._arriving.pop(produced_by)
        work.wait()
        return buffer

    def finish(self) -> None:
        """Wait until everything has left."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()
        assert not self._arriving, f"received and never used: {list(map(str, self._arriving))}"

    def broadcast_from_last(self, tensor: Tensor) -> None:
        """Overwrite a tensor on every rank of the pipeline by the last one's."""
        dist.broadcast(tensor, src=self._ranks[-1], group=self._group)

    def pass_on(self, tensor: Tensor, *, sender: int, receiver: int, me: int) -> None:
        """Carry a tensor from one pipeline stage to another, waiting for it; others return at once."""
        if me == sender:
            dist.send(tensor.contiguous(), dst=self._ranks[receiver], group=self._group)
        elif me == receiver:
            dist.recv(tensor, src=self._ranks[sender], group=self._group)

    def _tag(self, transfer: Send | Receive) -> int:
        made = transfer.produced_by
        return 1 + 2 * (made.micro_batch * self._num_chunks + made.chunk) + (made.kind.value == "B")


def _posted(work: dist.Work | None) -> dist.Work:
    assert work is not None  # None is returned to ranks outside of the group only
    return work


def empty_like_hidden(ids_BT: Tensor, hidden_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised [B, T, D] tensor for token ids [B, T]."""
    return torch.empty((*ids_BT.shape, hidden_size), dtype=dtype, device=device)
