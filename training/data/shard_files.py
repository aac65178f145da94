"""One shard: some records of a source as token ids in a row, in files that are mapped, not read.

<split>-<number>.bin            token ids, little-endian, record after record; a document's last one ends it
<split>-<number>.index.npy      int64 start of each record, and the number of tokens as last entry
<split>-<number>.targets.bin    one byte a token, 1 where it is to be learned; not of documents
<split>-<number>.ids.bin        ids of the records in UTF-8, one after the other
<split>-<number>.ids.index.npy  int64 start of each id, and the number of bytes as last entry
"""

import mmap
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from training.data.manifest import ShardCounts

_INDEX_HEADER = re.compile(rb"\{'descr': '<i8', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n")
"""What np.save writes before such an array; numpy's own reader parses it as Python."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRecord:
    """A record as token ids."""

    id: str
    token_ids: np.ndarray
    """Any integer type; at least one."""
    is_target: np.ndarray | None
    """bool, one a token; None where all are to be learned."""
    num_bytes: int
    """UTF-8 bytes of its text."""


class DamagedFile(ValueError):
    """A file of a shard is not what was written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest unsigned little-endian type that holds every token id."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def shard_name(split: str, number: int) -> str:
    """Return what the names of a shard's files begin with."""
    return f"{split}-{number:05d}"


def write_shard(
    folder: Path, name: str, records: Iterable[EncodedRecord], *, vocab_size: int, has_targets: bool
) -> ShardCounts:
    """Write the files of one shard, record by record, and return what is in it.

    Args:
        folder: of the source.
        name: see `shard_name`.
        records: in order; each has `is_target` if the shard has targets.
        vocab_size: every token id is smaller.
        has_targets: whether some tokens are not to be learned.
    """
    dtype = token_dtype(vocab_size)
    starts, ids, num_bytes, num_targets = [0], [], 0, 0
    targets = (folder / f"{name}.targets.bin").open("wb") if has_targets else None
    try:
        with (folder / f"{name}.bin").open("wb") as shard:
            for record in records:
                assert record.token_ids.max() < vocab_size, "a token id is outside the vocabulary"
                shard.write(record.token_ids.astype(dtype).tobytes())
                if targets is not None:
                    assert record.is_target is not None
                    targets.write(record.is_target.astype("u1").tobytes())
                num_targets += len(record.token_ids) if record.is_target is None else int(record.is_target.sum())
                starts.append(starts[-1] + len(record.token_ids))
                num_bytes += record.num_bytes
                ids.append(record.id)
    finally:
        if targets is not None:
            targets.close()
    np.save(folder / f"{name}.index.npy", np.array(starts, dtype="<i8"), allow_pickle=False)
    encoded_ids = [record_id.encode() for record_id in ids]
    (folder / f"{name}.ids.bin").write_bytes(b"".join(encoded_ids))
    id_starts = np.array([0, *accumulate(map(len, encoded_ids))], dtype="<i8")
    np.save(folder / f"{name}.ids.index.npy", id_starts, allow_pickle=False)
    return ShardCounts(num_records=len(ids), num_tokens=starts[-1], num_targets=num_targets, num_bytes=num_bytes)


class Shard:
    """The files of one shard, each mapped and checked when it is first used.

    Args:
        folder: of the source.
        name: see `shard_name`.
        counts: what the manifest says of it.
        dtype: of its token ids.
        has_targets: whether some of its tokens are not to be learned.
    """

    def __init__(self, folder: Path, name: str, counts: ShardCounts, dtype: np.dtype, *, has_targets: bool) -> None:
        self.counts = counts
        self._stem = folder / name
        self._dtype = dtype
        self._has_targets = has_targets

    @cached_property
    def tokens(self) -> np.ndarray:
        """Token ids of all records, mapped.

        Raises:
            DamagedFile: the file does not hold as many as it should.
        """
        return self._mapped(".bin", self._dtype)

    @cached_property
    def targets(self) -> np.ndarray | None:
        """One byte a token, mapped: 1 where it is to be learned; None where all are.

        Raises:
            DamagedFile: the file does not hold as many as it should.
        """
        return self._mapped(".targets.bin", np.dtype("u1")) if self._has_targets else None

    @cached_property
    def starts(self) -> np.ndarray:
        """int64; where each record starts, and the number of tokens as last entry.

        Raises:
            DamagedFile: the file is another one.
        """
        return self._starts(".index.npy", self.counts.num_tokens)

    def id_of(self, record: int) -> str:
        """Return the id of a record, counted from 0 in this shard.

        Raises:
            DamagedFile: the files do not hold the ids.
        """
        start, end = self._id_starts[record : record + 2].tolist()
        try:
            return self._ids[start:end].decode()
        except UnicodeDecodeError as error:
            raise DamagedFile(self._path(".ids.bin"), str(error)) from error

    def records_with_id(self, record_id: str) -> list[int]:
        """Return the records of this shard that have an id.

        Raises:
            DamagedFile: the files do not hold the ids.
        """
        wanted, found, starts = record_id.encode(), [], self._id_starts
        place = self._ids.find(wanted)
        while place >= 0 and wanted:
            record = int(np.searchsorted(starts, place, side="right")) - 1
            if starts[record] == place and starts[record + 1] == place + len(wanted):
                found.append(record)
            place = self._ids.find(wanted, place + 1)
        return found

    @cached_property
    def _id_starts(self) -> np.ndarray:
        return self._starts(".ids.index.npy", len(self._ids))

    @cached_property
    def _ids(self) -> mmap.mmap | bytes:
        path = self._path(".ids.bin")
        try:
            if not path.is_file():
                raise DamagedFile(path, "it is no plain file")
            if path.stat().st_size == 0:  # an empty file cannot be mapped
                return b""
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DamagedFile(path, str(error)) from error

    def _starts(self, suffix: str, end: int) -> np.ndarray:
        path = self._path(suffix)
        try:
            starts = read_index(path, self.counts.num_records + 1)
        except (OSError, ValueError) as error:
            raise DamagedFile(path, str(error)) from error
        if starts[0] != 0 or starts[-1] != end or not np.all(np.diff(starts) > 0):
            raise DamagedFile(path, "its record starts do not fit the manifest")
        return starts

    def _path(self, suffix: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}{suffix}")

    def _mapped(self, suffix: str, dtype: np.dtype) -> np.ndarray:
        path, num_tokens = self._path(suffix), self.counts.num_tokens
        if not path.is_file() or path.stat().st_size != num_tokens * dtype.itemsize:
            raise DamagedFile(path, f"it does not hold {num_tokens} tokens")
        if num_tokens == 0:  # an empty file cannot be mapped
            return np.zeros(0, dtype)
        # A plain view: a memmap does work of its own at every slice.
        return np.memmap(path, dtype=dtype, mode="r", shape=(num_tokens,)).view(np.ndarray)


def read_index(path: Path, num_entries: int) -> np.ndarray:
    """Return the int64 numbers of an index file that has exactly so many; np.load would read whatever it finds.

    Raises:
        ValueError: it is another file: of objects, of another shape, a zip.
    """
    if not path.is_file():
        raise ValueError("it is no plain file")
    with path.open("rb") as file:
        magic, length = file.read(8), file.read(2)
        header = _INDEX_HEADER.fullmatch(file.read(int.from_bytes(length, "little")))
        if magic != b"\x93NUMPY\x01\x00" or header is None:
            raise ValueError("it is no .npy file of one row of int64")
        num_bytes = os.fstat(file.fileno()).st_size - file.tell()
        if int(header[1]) != num_entries or num_bytes != 8 * num_entries:
            raise ValueError(f"it holds {num_bytes} bytes of {int(header[1])} starts, {num_entries} belong there")
        return np.memmap(file, dtype="<i8", mode="r", offset=file.tell(), shape=(num_entries,)).view(np.ndarray)
