"""A rank's state copied to host memory: copied while training computes, written or read at leisure."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.checkpoint.manifest import WEIGHT


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """A flat range of one parameter with its optimizer state, as one rank holds it.

    The tensors are 1-D float32 views of live state: saving reads them, loading writes into them.
    """

    parameter: str
    """Canonical name."""
    shape: tuple[int, ...]
    """Global shape of the parameter."""
    start: int
    """First element of the range in the flattened parameter."""
    tensors: dict[str, Tensor]
    """kind (weight; exp_avg and exp_avg_sq, or momentum_buffer) -> values of the range."""
    is_owner: bool
    """Whether this rank writes the range (False for a replica that another rank writes)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A range of one tensor and its place in the snapshot's buffer."""

    kind: str
    parameter: str
    shape: tuple[int, ...]
    start: int
    """First element of the range in the flattened tensor."""
    live: Tensor
    """1-D view of the state that trains."""
    offset: int
    """First element in the buffer."""
    is_owner: bool

    @property
    def tensor(self) -> str:
        """Its name in the manifest: "<kind>/<canonical parameter name>"."""
        return f"{self.kind}/{self.parameter}"

    @property
    def numel(self) -> int:
        """Elements of the range."""
        return self.live.numel()

    @torch.no_grad()
    def put(self, first: int, values: NDArray[np.float32]) -> None:
        """Replace live values, from the flattened tensor's element `first` on; complete on return."""
        begin = first - self.start
        self.live[begin : begin + len(values)].copy_(torch.from_numpy(values))


class Snapshot:
    """One flat float32 buffer with a place for every value that a rank holds; what it owns comes first.

    So the data of the rank's file is one piece of memory. It is made at the first save and kept (page-locked where the
    state is on a device): 12 bytes per parameter held.

    Weights and moments change in the optimizer's update alone, so they need not be copied in one go: `expect_take` says
    that a copy begins, another thread does it (`take`) beside the next step's forwards and backwards, and `settle`,
    called before each update, waits for what is left of it. (Mohan et al., "CheckFreq", FAST 2021, section 4.1.)
    """

    def __init__(self, fragments: Sequence[Fragment]) -> None:
        self._buffer: Tensor | None = None
        self.pieces: list[Piece] = []
        """In the buffer's order."""
        offset = 0
        for fragment in sorted(fragments, key=lambda fragment: not fragment.is_owner):
            for kind, live in fragment.tensors.items():
                self.pieces.append(
                    Piece(
                        kind=kind,
                        parameter=fragment.parameter,
                        shape=fragment.shape,
                        start=fragment.start,
                        live=live,
                        offset=offset,
                        is_owner=fragment.is_owner,
                    )
                )
                offset += live.numel()
        self._numel = offset
        self._copied = threading.Event()
        self._copied.set()
        self._ready: torch.Event | None = None
        """On a device: when the state to be copied is complete."""
        self.waited_seconds = 0.0
        """How long `settle` has held training since the last `expect_take`."""

    @property
    def owned(self) -> list[Piece]:
        """What this rank writes, in the order of its file."""
        return [piece for piece in self.pieces if piece.is_owner]

    @property
    def owned_bytes(self) -> int:
        """Bytes of what this rank writes."""
        return 4 * sum(piece.numel for piece in self.owned)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Global shapes of the parameters that this rank holds a part of."""
        return {piece.parameter: piece.shape for piece in self.pieces if piece.kind == WEIGHT}

    def expect_take(self) -> None:
        """Let `settle` wait from now on until `take` has returned; the thread that trains calls it."""
        self._copied.clear()
        self.waited_seconds = 0.0
        if self._on_device():
            self._ready = torch.accelerator.current_stream().record_event()

    @torch.no_grad()
    def take(self) -> None:
        """Copy the live state into the buffer; complete on return. Any thread may call it."""
        try:
            if self._ready is None:
                self._copy()
            else:  # beside the stream that trains, not in it
                with torch.Stream(self._device()) as stream:
                    stream.wait_event(self._ready)
                    self._copy()
        finally:
            self._ready = None
            self._copied.set()

    def settle(self) -> None:
        """Return once no copy is under way: from then on the live state may change."""
        if not self._copied.is_set():
            begun = time.perf_counter()
            self._copied.wait()
            self.waited_seconds += time.perf_counter() - begun

    def values(self, piece: Piece) -> NDArray[np.float32]:
        """Return a piece's values, a view of the buffer."""
        return self._host()[piece.offset : piece.offset + piece.numel].numpy()

    def owned_data(self) -> memoryview:
        """Return the values of all owned pieces, one after the other: the data part of this rank's file."""
        return self._host()[: self.owned_bytes // 4].numpy().data.cast("B")

    def _copy(self) -> None:
        for piece, place in self._places():
            place.copy_(piece.live, non_blocking=True)
        self._wait_for_device()

    def _places(self) -> Iterator[tuple[Piece, Tensor]]:
        buffer = self._host()
        for piece in self.pieces:
            yield piece, buffer[piece.offset : piece.offset + piece.numel]

    def _host(self) -> Tensor:
        if self._buffer is None:
            self._buffer = torch.empty(self._numel, dtype=torch.float32, pin_memory=self._on_device())
        return self._buffer

    def _on_device(self) -> bool:
        return self._device().type != "cpu"

    def _device(self) -> torch.device:
        return next((piece.live.device for piece in self.pieces), torch.device("cpu"))

    def _wait_for_device(self) -> None:
        if self._on_device():
            torch.accelerator.current_stream().synchronize()
