"""Write a safetensors file as a stream: the header first, then bytes as they come, hashed on the way to the disk.

safetensors' own writer wants all tensors in memory at once and leaves the file unhashed and unsynced. The format is
that of huggingface/safetensors (README, "Format"): 8 bytes little-endian header length, JSON header, raw data.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

from training.checkpoint.manifest import File
from training.errors import StorageError

ELEMENT_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""Bytes of an element by safetensors' name of its dtype."""
CHUNK_BYTES = 8 * 2**20
"""Bytes that are hashed and written at a time."""


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
