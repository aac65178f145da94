"""Any layout's checkpoint into any other layout's ranks: each reads the ranges it holds, and all check the whole.

Everything is read into the snapshot's buffer and checked over all ranks before the first live value changes.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np

from training.checkpoint.digest import MODULUS, digest
from training.checkpoint.manifest import MOMENTS, WEIGHT, Progress, Slice, read_manifest
from training.checkpoint.ranks import Ranks, do_together
from training.checkpoint.snapshot import Piece, Snapshot
from training.checkpoint.tensor_file import NUM_THREADS, TensorFileReader
from training.errors import CorruptCheckpoint

_MOST_OPEN = 64

Wanted = tuple[str, int, memoryview]
"""(tensor, first element, float32 destination)."""


class WeightSource(Protocol):
    """Weights by canonical name: a checkpoint's or a Hugging Face directory's."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Canonical parameter name -> shape."""
        ...

    def read_all(self, wanted: "Iterable[Wanted]") -> None:
        """Fill many float32 destinations, each with a flattened tensor's elements from a given one on."""
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
        for part in self._parts(tensor, start, destination):
            self._read(self._file_of(part.piece), part)

    def read_all(self, wanted: Iterable[Wanted]) -> None:
        """Fill many destinations, each as `read_into` does, file by file, so that each file is opened once.

        A rank that holds whole tensors needs a part of every file for each of them: tensor by tensor it would open
        the files of 1,000 ranks anew for every one of 1,000 tensors.
        """
        parts: dict[str, list[_Part]] = {}
        for request in wanted:
            for part in self._parts(*request):
                parts.setdefault(part.piece.file, []).append(part)
        with ThreadPoolExecutor(max_workers=NUM_THREADS) as threads:
            for _, of_one_file in sorted(parts.items()):
                files = [self._file_of(part.piece) for part in of_one_file]
                for _ in threads.map(self._read, files, of_one_file):
                    pass

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._open.clear()

    def _parts(self, tensor: str, start: int, destination: memoryview) -> "Iterator[_Part]":
        """Yield where the elements from `start` on lie."""
        destination = destination.cast("B")
        stop = start + len(destination) // 4
        if tensor not in self._slices:
            raise CorruptCheckpoint(f"{self.checkpoint}: holds no {tensor}")
        for piece in self._slices[tensor]:
            low, high = max(start, piece.start), min(stop, piece.start + piece.numel)
            if low < high:
                place = destination[4 * (low - start) : 4 * (high - start)]
                yield _Part(piece=piece, start=low - piece.start, destination=place)

    def _read(self, file: TensorFileReader, part: "_Part") -> None:
        file.read_into(part.piece.key, part.start, part.destination)
        with self._counting:
            self.bytes_read += len(part.destination)

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
    """A range of one slice and where it belongs."""

    piece: Slice
    start: int
    """First element in the slice."""
    destination: memoryview


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

    Raises:
        CorruptCheckpoint: on every rank: it is damaged, holds no optimizer state, or does not fit the model; no live
            value was changed.
    """
    begun = time.perf_counter()
    opened: list[CheckpointReader] = []

    def fill() -> None:
        reader = CheckpointReader(checkpoint)
        opened.append(reader)
        if not reader.manifest.has_moments:
            raise CorruptCheckpoint(
                f"{checkpoint}: holds weights only, no optimizer state\n  -> init_from=checkpoint:{checkpoint} starts "
                "a new run from them"
            )
        _fill(reader, snapshot, snapshot.pieces, str(checkpoint))

    do_together(ranks, fill)
    (reader,) = opened
    _check_whole(reader.tensor_shapes, reader.digests(), snapshot, ranks, str(checkpoint))
    snapshot.restore()
    reader.close()
    return Loaded(
        progress=reader.manifest.progress,
        bytes_read=reader.bytes_read,
        seconds=time.perf_counter() - begun,
    )


def load_weights(open_source: Callable[[], WeightSource], snapshot: Snapshot, ranks: Ranks) -> None:
    """Replace the live weights of all ranks by a source's and set both moments to zero; collective.

    Raises:
        AutarkyError: on every rank: the source does not fit the model, or is damaged; no live value was changed.
    """
    opened: list[WeightSource] = []

    def fill() -> None:
        opened.append(open_source())
        weights = [piece for piece in snapshot.pieces if piece.kind == WEIGHT]
        _fill(opened[0], snapshot, weights, "init_from")

    do_together(ranks, fill)
    shapes = {f"{WEIGHT}/{name}": shape for name, shape in opened[0].shapes.items()}
    _check_whole(shapes, opened[0].digests(), snapshot, ranks, "init_from")
    for piece in snapshot.pieces:
        if piece.kind in MOMENTS:
            snapshot.values(piece).fill(0)
    snapshot.restore()


def _fill(source: WeightSource, snapshot: Snapshot, pieces: list[Piece], name: str) -> None:
    shapes = source.shapes
    for parameter, shape in snapshot.parameter_shapes.items():
        if parameter not in shapes:
            raise CorruptCheckpoint(f"{name}: holds no {parameter}; is it another model's?")
        if shapes[parameter] != shape:
            raise CorruptCheckpoint(f"{name}: {parameter} has shape {shapes[parameter]}, the model's is {shape}")
    source.read_all((piece.tensor, piece.start, snapshot.values(piece).data) for piece in pieces)


def _check_whole(
    shapes: Mapping[str, tuple[int, ...]], digests: Mapping[str, int], snapshot: Snapshot, ranks: Ranks, name: str
) -> None:
    """Raise unless the ranks' pieces together are exactly these tensors, with these digests where they are known."""
    sums: dict[str, list[int]] = {tensor: [0, 0] for tensor in shapes}
    pieces = [piece for piece in snapshot.owned if piece.tensor in sums]
    with ThreadPoolExecutor(max_workers=NUM_THREADS) as threads:
        digests_of_pieces = threads.map(
            lambda piece: digest(snapshot.values(piece).view(np.uint32), piece.start), pieces
        )
        for piece, number in zip(pieces, digests_of_pieces, strict=True):
            sums[piece.tensor][0] += number
            sums[piece.tensor][1] += piece.numel
    totals = ranks.sum_integers([number for pair in sums.values() for number in pair])
    for tensor, total, numel in zip(sums, totals[::2], totals[1::2], strict=True):
        if numel == 0:
            raise CorruptCheckpoint(f"{name}: holds {tensor}, which the model does not have")
        if numel != prod(shapes[tensor]):
            raise CorruptCheckpoint(f"{name}: {numel:,} of {prod(shapes[tensor]):,} elements of {tensor} have a place")
        if tensor in digests and total != digests[tensor]:
            raise CorruptCheckpoint(
                f"{name}: {tensor} is not what was saved once its {numel:,} elements are put together (digest differs)"
            )
