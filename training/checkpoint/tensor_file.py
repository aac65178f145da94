"""safetensors files as streams: written header first and hashed on the way to the disk, read range by range.

safetensors' own writer wants all tensors in memory at once and leaves the file unhashed and unsynced; its reader maps
files, whose pages then count as the process's memory. The format is
that of huggingface/safetensors (README, "Format"): 8 bytes little-endian header length, JSON header, raw data.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

from training.checkpoint.manifest import MOST_DIMS, File
from training.errors import CorruptCheckpoint, StorageError

ELEMENT_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""Bytes of an element by safetensors' name of its dtype."""
CHUNK_BYTES = 2**20
"""Bytes that are hashed and written or read at a time: they stay in a core's cache between the two."""
_AHEAD_BYTES = 16 * 2**20
_AHEAD_STEP_BYTES = 4 * 2**20
NUM_THREADS = min(4, os.cpu_count() or 1)
"""Threads of a rank that read and hash at a time. Ranks of a node share its cores, so it is few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorHeader:
    """One entry of a file's header."""

    key: str
    dtype: str
    """Of ELEMENT_BYTES."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        return ELEMENT_BYTES[self.dtype] * prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileChunk:
    """Some bytes of a file, as they lie in it."""

    key: str
    """Of the tensor that they belong to; empty for the header."""
    start: int
    """First element, counted in that tensor."""
    data: memoryview


class TensorFileWriter:
    """Writes one safetensors file; use as a context manager, then read `file`.

    Args:
        path: made anew; an existing file is an error, so that two writers never share one.
        tensors: what the file will hold, in the order in which `write` gets the data.
        metadata: texts for the header's `__metadata__`.

    Raises:
        OSError: the file cannot be made or written.
    """

    def __init__(self, path: Path, tensors: Sequence[TensorHeader], metadata: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._expected_bytes = sum(tensor.num_bytes for tensor in tensors)
        self._written_bytes = 0
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._put(_header(tensors, metadata))
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                if self._written_bytes != self._expected_bytes:
                    raise StorageError(
                        f"{self._path}: {self._written_bytes} of {self._expected_bytes} bytes were given\n"
                        "  -> this is a bug of the writer, nothing was committed"
                    )
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def write(self, data: memoryview) -> None:
        """Append data: any number of bytes, of any tensors, in the header's order."""
        data = data.cast("B")
        for start in range(0, len(data), CHUNK_BYTES):
            self._put(data[start : start + CHUNK_BYTES])
        self._written_bytes += len(data)

    @property
    def file(self) -> File:
        """Name, size and hash of what was written; final once the context was left."""
        return File(name=self._path.name, num_bytes=self._num_bytes, sha256=self._sha256.hexdigest())

    def _put(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        while len(data):
            count = os.write(self._descriptor, data)
            self._num_bytes += count
            data = data[count:]


def _header(tensors: Sequence[TensorHeader], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        entries[tensor.key] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins aligned, as safetensors' own writer has it
    return len(text).to_bytes(8, "little") + text


_LONGEST_HEADER_BYTES = 100_000_000
"""The limit of safetensors' own reader."""


class TensorFileReader:
    """Reads any range of any tensor of one safetensors file with `pread`: no page of it stays mapped.

    Raises:
        CorruptCheckpoint: it is missing, or no safetensors file: header, offsets and size must fit to the byte.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_open = False
        self.open()
        try:
            self.tensors, self.metadata, self._begin = self._read_header()
            self._offsets = dict(zip(self.tensors, self._ranges(), strict=True))
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | ValueError | KeyError | TypeError | AttributeError | RecursionError):
                raise CorruptCheckpoint(f"{path}: not a safetensors file ({type(error).__name__}: {error})") from error
            raise

    def read_into(self, key: str, start: int, destination: memoryview) -> None:
        """Fill the destination with the bytes of a tensor's elements from `start` on."""
        header = self.tensors[key]
        destination = destination.cast("B")
        place = start * ELEMENT_BYTES[header.dtype]
        assert place + len(destination) <= header.num_bytes, f"{key}: {start} + {len(destination)} bytes"
        self._fill(key, destination, self._begin + self._offsets[key] + place)

    def chunks(self) -> Iterator[FileChunk]:
        """Yield every byte of the file once, in order; a chunk's memory is used again for the next one."""
        header_bytes = memoryview(bytearray(self._begin))
        self._fill("its header", header_bytes, 0)
        yield FileChunk(key="", start=0, data=header_bytes)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        asked = 0
        for header in self.tensors.values():
            for begin in range(0, header.num_bytes, CHUNK_BYTES):
                data = buffer[: min(CHUNK_BYTES, header.num_bytes - begin)]
                place = self._begin + self._offsets[header.key] + begin
                while asked < place + _AHEAD_BYTES:  # so that the disk reads on while this chunk is looked at
                    os.posix_fadvise(self._descriptor, asked, _AHEAD_STEP_BYTES, os.POSIX_FADV_WILLNEED)
                    asked += _AHEAD_STEP_BYTES
                self._fill(header.key, data, place)
                yield FileChunk(key=header.key, start=begin // ELEMENT_BYTES[header.dtype], data=data)

    def _fill(self, what: str, destination: memoryview, place: int) -> None:
        """Fill the destination with the file's bytes from `place` on."""
        self.open()
        try:
            while len(destination):
                count = os.preadv(self._descriptor, [destination], place)
                if count == 0:
                    raise CorruptCheckpoint(f"{self._path}: ends in the middle of {what}")
                place, destination = place + count, destination[count:]
        except OSError as error:
            raise CorruptCheckpoint(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Close the file; its header is kept, and the next read opens it again."""
        if self._is_open:
            os.close(self._descriptor)
            self._is_open = False

    def open(self) -> None:
        """Open the file unless it is open; a read does that too, but only one thread may."""
        if not self._is_open:
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # no pipe is awaited
            except OSError as error:
                raise CorruptCheckpoint(f"{self._path}: {error}") from error
            self._is_open = True

    def _read_header(self) -> tuple[dict[str, TensorHeader], dict[str, str], int]:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise ValueError("it is no plain file")
        prefix = os.pread(self._descriptor, 8, 0)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(_LONGEST_HEADER_BYTES, os.fstat(self._descriptor).st_size - 8):
            raise ValueError(f"a header of {length} bytes")
        entries = json.loads(os.pread(self._descriptor, length, 8))
        metadata = entries.pop("__metadata__", {})
        end, tensors = 0, {}
        for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            if dtype not in ELEMENT_BYTES:
                raise ValueError(f"{key} has dtype {dtype}; known are {', '.join(ELEMENT_BYTES)}")
            if len(shape) > MOST_DIMS or not all(isinstance(size, int) and 0 <= size < 2**63 for size in shape):
                raise ValueError(f"{key} has shape {shape[:MOST_DIMS]}")
            tensors[key] = TensorHeader(key=key, dtype=dtype, shape=shape)
            if start != end or stop != start + tensors[key].num_bytes:
                raise ValueError(f"{key} lies at bytes {start} to {stop}")
            end = stop
        if 8 + length + end != os.fstat(self._descriptor).st_size:
            raise ValueError(f"{os.fstat(self._descriptor).st_size} bytes, the header says {8 + length + end}")
        return tensors, metadata, 8 + length

    def _ranges(self) -> Iterator[int]:
        end = 0
        for header in self.tensors.values():
            yield end
            end += header.num_bytes
