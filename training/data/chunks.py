"""A source as it was read: its usable records in Arrow files, the first step of preparation.

<folder>/chunk-00000.arrow   id, content and digest of records, about data.shard_bytes of content
<folder>/chunk-00000.json    how far the source was read, what was not used; written last, so that it commits the chunk

A reading that was killed goes on after the last chunk that is whole.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from training.config.data_schema import SourceConfig
from training.data.chunk_files import CHUNK_SCHEMA, open_chunk, write_chunk
from training.data.corpus import Seen, read_records
from training.data.manifest import hash_file
from training.data.records import Quarantined, Record
from training.durable_files import fsync, write_durably
from training.plain_files import read_json, typed

_MOST_QUARANTINED = 50_000
"""Of a chunk, so that a source of nothing but bad records stays within memory."""
_ROWS_PER_CALL = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Committed:
    """What the JSON file of a chunk says."""

    num_records: int
    num_bytes: int
    next_row: int
    """Of the source: the first one that belongs to the next chunk."""
    is_last: bool
    sha256: str
    """Of the Arrow file."""
    quarantined: list[dict[str, str]]


class Chunk:
    """Some consecutive usable records of a source."""

    def __init__(self, path: Path, committed: _Committed) -> None:
        self.path = path
        """Its Arrow file."""
        self.num_records = committed.num_records
        self.num_bytes = committed.num_bytes
        self.sha256 = committed.sha256
        self.quarantined = committed.quarantined
        """Records between its own that are not used, as quarantine.jsonl has them."""

    @cached_property
    def ids(self) -> list[str]:
        """Ids of its records."""
        return self._table.column("id").to_pylist()

    @cached_property
    def digests(self) -> list[bytes]:
        """Digests of its records."""
        return self._table.column("digest").to_pylist()

    @cached_property
    def lengths_bytes(self) -> list[int]:
        """Bytes of its records' contents."""
        return pc.call_function("binary_length", [self._table.column("content")]).to_pylist()

    def content_of(self, record: int) -> bytes:
        """Return the content of a record, by its place in the chunk."""
        return self._table.column("content")[record].as_py()

    @cached_property
    def _table(self) -> pa.Table:
        return open_chunk(self.path)


def read_source(
    name: str,
    source: SourceConfig,
    folder: Path,
    *,
    chunk_bytes: int,
    keep_alive: Callable[[int], None],
) -> list[Chunk]:
    """Return the whole source in chunks; what an earlier call has finished is not read again.

    Args:
        name: of the source.
        source: what to read.
        folder: of its chunks.
        chunk_bytes: content of a chunk, about.
        keep_alive: is called again and again with the bytes read since the last call; may raise to end it.

    Raises:
        ConfigError: the source names no file.
        DataError: a file cannot be read.
        StorageError: the chunks cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks, seen, next_row, is_whole = _finished(folder, is_own_id=source.id_field is not None)
    if is_whole:
        return chunks
    builder = _Builder(folder / f"chunk-{len(chunks):05d}.arrow", next_row)
    told_bytes = 0
    for count, (following, found) in enumerate(read_records(name, source, seen=seen, first_row=next_row)):
        builder.add(found, following)
        if count % _ROWS_PER_CALL == 0:
            keep_alive(builder.num_bytes - told_bytes)
            told_bytes = builder.num_bytes
        if builder.num_bytes >= chunk_bytes or len(builder.quarantined) >= _MOST_QUARANTINED:
            keep_alive(builder.num_bytes - told_bytes)
            chunks.append(builder.commit(is_last=False))
            builder, told_bytes = _Builder(folder / f"chunk-{len(chunks):05d}.arrow", following), 0
    keep_alive(builder.num_bytes - told_bytes)
    chunks.append(builder.commit(is_last=True))
    return chunks


def _finished(folder: Path, *, is_own_id: bool) -> tuple[list[Chunk], Seen, int, bool]:
    """Return the chunks that an earlier call has committed, what is in them, where to go on, whether that is all."""
    chunks, seen = list[Chunk](), Seen()
    next_row, is_whole = 0, False
    for path, committed in _committed(folder):
        chunk = Chunk(path, committed)
        chunks.append(chunk)
        for record_id, digest in zip(chunk.ids, chunk.digests, strict=True):
            seen.add(record_id, digest, is_own_id=is_own_id)
        next_row, is_whole = committed.next_row, committed.is_last
    return chunks, seen, next_row, is_whole


def _committed(folder: Path) -> Iterator[tuple[Path, _Committed]]:
    """Yield the chunks from the first one on, up to one that is not whole."""
    is_last = False
    number = 0
    while not is_last:
        path = folder / f"chunk-{number:05d}.arrow"
        try:
            committed = typed(_Committed, read_json(path.with_suffix(".json")))
        except (FileNotFoundError, ValueError):
            return
        if not path.is_file() or hash_file(path) != committed.sha256:
            return
        yield path, committed
        number, is_last = number + 1, committed.is_last


class _Builder:
    """Collects the records of one chunk and writes them."""

    def __init__(self, path: Path, next_row: int) -> None:
        self._path = path
        self._next_row = next_row
        self._columns: dict[str, list[Any]] = {name: [] for name in CHUNK_SCHEMA.names}
        self.num_bytes = 0
        self.quarantined: list[Quarantined] = []

    def add(self, found: Record | Quarantined, next_row: int) -> None:
        """Take a record, which ends before `next_row`."""
        self._next_row = next_row
        if isinstance(found, Quarantined):
            self.quarantined.append(found)
            return
        for name, value in (("id", found.id), ("content", found.content), ("digest", found.digest)):
            self._columns[name].append(value)
        self.num_bytes += len(found.content)

    def commit(self, *, is_last: bool) -> Chunk:
        """Write the files and return the chunk."""
        table = pa.table(self._columns, schema=CHUNK_SCHEMA)
        write_chunk(self._path, table)
        fsync(self._path)
        committed = _Committed(
            num_records=table.num_rows,
            num_bytes=self.num_bytes,
            next_row=self._next_row,
            is_last=is_last,
            sha256=hash_file(self._path),
            quarantined=[one.as_json() for one in self.quarantined],
        )
        write_durably(self._path.with_suffix(".json"), json.dumps(asdict(committed)))
        return Chunk(self._path, committed)
