"""Any layout's checkpoint into any other layout's ranks: each reads the ranges it holds, and all check the whole.

What can be known before, is checked over all ranks before the first live value changes: that the ranks' ranges are
exactly the tensors that the files hold, which `catalog.verify` has hashed. Values then go straight to their places, a
chunk at a time: a second copy of the state, in memory that was never touched, took longer than all the reading.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.checkpoint.digest import MODULUS, digest, telescoped
from training.checkpoint.manifest import MOMENTS, MOMENTUM, WEIGHT, Progress, Slice, read_manifest
from training.checkpoint.ranks import Ranks, do_together
from training.checkpoint.snapshot import Piece, Snapshot
from training.checkpoint.tensor_file import CHUNK_BYTES, NUM_THREADS, TensorFileReader
from training.errors import CorruptCheckpoint

_MOST_OPEN = 64
CHUNK_ELEMENTS = CHUNK_BYTES // 4
"""float32 elements that are read and passed on at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A range of a tensor, and who takes it."""

    tensor: str
    """ "<kind>/<canonical name>"."""
    start: int
    """First element in the flattened tensor."""
    numel: int
    take: Callable[[int, NDArray[np.float32]], None]
    """Gets (first element in the flattened tensor, values) for parts of the range, in any order and from any thread;
    the values hold during the call only."""


class WeightSource(Protocol):
    """Weights by canonical name: a checkpoint's or a Hugging Face directory's."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Canonical parameter name -> shape."""
        ...

    def read_all(self, wanted: "Iterable[Wanted]") -> None:
        """Pass on every element of many ranges, once."""
        ...

    def digests(self) -> Mapping[str, int]:
        """Return the digests of the tensors whose digest is known, by "<kind>/<canonical name>"."""
        ...


class CheckpointReader:
    """Reads any range of any tensor of a committed checkpoint, touching only the files that hold it.

    Raises:
        CorruptCheckpoint: the manifest cannot be read.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.manifest = read_manifest(checkpoint)
        self.bytes_read = 0
        """Bytes of tensors read so far."""
        self._counting = threading.Lock()
        self._slices = self.manifest.tensors()
        self._files: dict[str, TensorFileReader] = {}
        self._open: list[str] = []
        """Those that are open now, the one opened first at the front."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical parameter name -> shape."""
        prefix = f"{WEIGHT}/"
        return {
            name.removeprefix(prefix): pieces[0].shape
            for name, pieces in self._slices.items()
            if name.startswith(prefix)
        }

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by "<kind>/<canonical name>", weights first; in a bad file a moment's may differ."""
        names = sorted(self._slices, key=lambda name: not name.startswith(f"{WEIGHT}/"))
        return {name: self._slices[name][0].shape for name in names}

    def digests(self) -> dict[str, int]:
        """Return the digest of every tensor: that of its slices together."""
        return {name: sum(piece.digest for piece in pieces) % MODULUS for name, pieces in self._slices.items()}

    def read(self, tensor: str, start: int, numel: int) -> np.ndarray:
        """Return elements start..start+numel of a flattened tensor, 1-D float32."""
        values = np.empty(numel, dtype=np.float32)
        self.read_into(tensor, start, values.data)
        return values

    def read_into(self, tensor: str, start: int, destination: memoryview) -> None:
        """Fill a float32 destination with the flattened tensor's elements from `start` on."""
        destination = destination.cast("B")
        for part in self._parts(tensor, start, len(destination) // 4):
            place = 4 * (part.first - start)
            self._read(self._file_of(part.piece), part, destination[place : place + 4 * part.numel])

    def read_all(self, wanted: "Iterable[Wanted]") -> None:
        """Pass on every element of many ranges, file by file, so that each file is opened once.

        A rank that holds whole tensors needs a part of every file for each of them: tensor by tensor it would open
        the files of 1,000 ranks anew for every one of 1,000 tensors.
        """
        parts: dict[str, list[tuple[_Part, Wanted]]] = {}
        for want in wanted:
            for part in self._parts(want.tensor, want.start, want.numel):
                for chunk in part.chunks():
                    parts.setdefault(part.piece.file, []).append((chunk, want))
        scratch = threading.local()

        def pass_on(file: TensorFileReader, part: _Part, want: Wanted) -> None:
            if not hasattr(scratch, "values"):
                scratch.values = np.empty(CHUNK_ELEMENTS, dtype=np.float32)
            values = scratch.values[: part.numel]
            self._read(file, part, values.data.cast("B"))
            want.take(part.first, values)

        with ThreadPoolExecutor(max_workers=NUM_THREADS) as threads:
            for _, of_one_file in sorted(parts.items()):
                files = [self._file_of(part.piece) for part, _ in of_one_file]
                for _ in threads.map(pass_on, files, *zip(*of_one_file, strict=True)):
                    pass

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._open.clear()

    def _parts(self, tensor: str, start: int, numel: int) -> "Iterator[_Part]":
        """Yield where the elements from `start` on lie."""
        if tensor not in self._slices:
            raise CorruptCheckpoint(f"{self.checkpoint}: holds no {tensor}")
        for piece in self._slices[tensor]:
            low, high = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if low < high:
                yield _Part(piece=piece, first=low, numel=high - low)

    def _read(self, file: TensorFileReader, part: "_Part", destination: memoryview) -> None:
        file.read_into(part.piece.key, part.first - part.piece.start, destination)
        with self._counting:
            self.bytes_read += len(destination)

    def _file_of(self, piece: Slice) -> TensorFileReader:
        """Return the file of a slice. Few stay open, a large checkpoint has thousands; a header is parsed once."""
        if piece.file not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._files[self._open.pop(0)].close()
            self._open.append(piece.file)
        if piece.file not in self._files:
            path = self.checkpoint / piece.file
            if path.is_symlink():
                raise CorruptCheckpoint(f"{path}: is a link, no plain file")
            self._files[piece.file] = TensorFileReader(path)
        file = self._files[piece.file]
        file.open()  # here, not by one of the threads that read
        header = file.tensors.get(piece.key)
        if header is None or header.dtype != "F32" or header.shape != (piece.numel,):
            raise CorruptCheckpoint(f"{self.checkpoint / piece.file}: holds no {piece.key} of {piece.numel} elements")
        return file


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A range of one slice."""

    piece: Slice
    first: int
    """First element in the flattened tensor."""
    numel: int

    def chunks(self) -> "Iterator[_Part]":
        """Yield the range in pieces of at most CHUNK_ELEMENTS."""
        for done in range(0, self.numel, CHUNK_ELEMENTS):
            yield _Part(piece=self.piece, first=self.first + done, numel=min(CHUNK_ELEMENTS, self.numel - done))


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What became the live state, and what it took."""

    progress: Progress
    bytes_read: int
    """Bytes of tensors that this rank read: what it holds, and no more, whatever layout wrote them."""
    seconds: float
    """Wall time on this rank."""


def load_checkpoint(checkpoint: Path, snapshot: Snapshot, ranks: Ranks) -> Loaded:
    """Make the state in a checkpoint, whatever layout wrote it, that of all ranks; collective. Returns its progress.

    Args:
        checkpoint: one that `catalog.verify` found whole.
        snapshot: says which live tensors this rank holds.
        ranks: that together hold the model.

    Raises:
        CorruptCheckpoint: on every rank: it holds no optimizer state, or does not fit the model, and no live value was
            changed. Or it changed since it was verified, or cannot be read any more: the live state is not to be used.
    """
    begun = time.perf_counter()
    opened: list[CheckpointReader] = []

    def look() -> None:
        reader = CheckpointReader(checkpoint)
        opened.append(reader)
        if not reader.manifest.has_moments:
            raise CorruptCheckpoint(
                f"{checkpoint}: holds weights only, no optimizer state\n  -> init_from=checkpoint:{checkpoint} starts "
                "a new run from them"
            )
        _check_fit(reader, snapshot, str(checkpoint))
        shapes = reader.tensor_shapes
        if missing := next((piece.tensor for piece in snapshot.pieces if piece.tensor not in shapes), None):
            raise CorruptCheckpoint(f"{checkpoint}: holds no {missing}; did another optimizer write it?")

    do_together(ranks, look)
    (reader,) = opened
    _check_cover(reader.tensor_shapes, snapshot, ranks, str(checkpoint))
    _fill(reader, snapshot, [WEIGHT, *MOMENTS, MOMENTUM], ranks, str(checkpoint))
    reader.close()
    return Loaded(
        progress=reader.manifest.progress,
        bytes_read=reader.bytes_read,
        seconds=time.perf_counter() - begun,
    )


def load_weights(open_source: Callable[[], WeightSource], snapshot: Snapshot, ranks: Ranks) -> None:
    """Replace the live weights of all ranks by a source's and set the optimizer's state to zero; collective.

    Raises:
        AutarkyError: on every rank: the source does not fit the model, and no live value was changed. Or it is damaged:
            the live state is not to be used.
    """
    opened: list[WeightSource] = []

    def look() -> None:
        opened.append(open_source())
        _check_fit(opened[0], snapshot, "init_from")

    do_together(ranks, look)
    shapes = {f"{WEIGHT}/{name}": shape for name, shape in opened[0].shapes.items()}
    _check_cover(shapes, snapshot, ranks, "init_from")
    _fill(opened[0], snapshot, [WEIGHT], ranks, "init_from")
    for piece in snapshot.pieces:
        if piece.kind != WEIGHT:
            piece.live.zero_()


def _check_fit(source: WeightSource, snapshot: Snapshot, name: str) -> None:
    shapes = source.shapes
    for parameter, shape in snapshot.parameter_shapes.items():
        if parameter not in shapes:
            raise CorruptCheckpoint(f"{name}: holds no {parameter}; is it another model's?")
        if shapes[parameter] != shape:
            raise CorruptCheckpoint(f"{name}: {parameter} has shape {shapes[parameter]}, the model's is {shape}")


def _check_cover(shapes: Mapping[str, tuple[int, ...]], snapshot: Snapshot, ranks: Ranks, name: str) -> None:
    """Raise unless the ranges that the ranks own are together exactly these tensors, each element once."""
    sums: dict[str, list[int]] = {tensor: [0, 0] for tensor in shapes}
    for piece in snapshot.owned:
        if piece.tensor in sums:
            sums[piece.tensor][0] += piece.numel
            sums[piece.tensor][1] += telescoped(piece.start, piece.start + piece.numel)
    totals = ranks.sum_integers([number % MODULUS for pair in sums.values() for number in pair])
    for tensor, numel, cut in zip(sums, totals[::2], totals[1::2], strict=True):
        size = prod(shapes[tensor])
        if numel == 0:
            raise CorruptCheckpoint(f"{name}: holds {tensor}, which the model does not have")
        if numel != size:
            raise CorruptCheckpoint(f"{name}: {numel:,} of {size:,} elements of {tensor} have a place")
        if cut != telescoped(0, size):
            raise CorruptCheckpoint(
                f"{name}: some of the {size:,} elements of {tensor} have two places, some have none"
            )


def _fill(source: WeightSource, snapshot: Snapshot, kinds: Sequence[str], ranks: Ranks, name: str) -> None:
    """Read the live values of some kinds, and compare what all ranks read with the digests that are known."""
    known = {tensor: number for tensor, number in source.digests().items() if tensor.partition("/")[0] in kinds}
    sums = dict.fromkeys(known, 0)
    adding = threading.Lock()

    def wanted(piece: Piece) -> Wanted:
        def take(first: int, values: NDArray[np.float32]) -> None:
            piece.put(first, values)
            if piece.is_owner and piece.tensor in known:
                number = digest(values.view(np.uint32), first)
                with adding:
                    sums[piece.tensor] += number

        return Wanted(tensor=piece.tensor, start=piece.start, numel=piece.numel, take=take)

    snapshot.settle()
    do_together(ranks, lambda: source.read_all(wanted(piece) for piece in snapshot.pieces if piece.kind in kinds))
    totals = ranks.sum_integers([sums[tensor] % MODULUS for tensor in known])
    for tensor, total in zip(known, totals, strict=True):
        if total != known[tensor]:
            raise CorruptCheckpoint(
                f"{name}: {tensor} is not what was saved once its elements are put together (digest differs)"
            )
