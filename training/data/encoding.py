"""One shard of documents: from text to files, in one process.

The files get their final names one by one and <name>.json is written last, so that it commits the shard: a preparation
that was killed does not encode it again.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.data.chunk_files import Piece, open_chunk
from training.data.manifest import FileEntry, ShardCounts, hash_file
from training.data.readers.rows import Fault, Reason, sample_of
from training.data.records import Quarantined
from training.data.shard_files import EncodedRecord, write_shard
from training.data.tokenizer import Tokenizer
from training.durable_files import fsync, write_durably
from training.plain_files import read_json, typed

_RECORDS_AT_ONCE = 64
"""Enough to keep all threads busy, few enough to hold their tokens in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """A shard that is to be written; sent to a process."""

    source: str
    name: str
    """See `shard_files.shard_name`."""
    pieces: Sequence[Piece]
    folder: Path
    """Where its files go."""
    commits: Path
    """Folder of the file that commits it."""
    tokenizer: Path
    """Directory."""
    end_of_document_token: str
    key: str
    """Of all that the shard follows from and that another preparation may have had different."""

    @property
    def num_bytes(self) -> int:
        """Of its records' contents."""
        return sum(piece.num_bytes for piece in self.pieces)

    @property
    def commit_file(self) -> Path:
        """The file that commits it."""
        return self.commits / f"{self.source}.{self.name}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedShard:
    """A shard that is written."""

    counts: ShardCounts
    files: dict[str, FileEntry]
    """By name."""
    quarantined: list[dict[str, str]]
    """Records that turned out unusable, as quarantine.jsonl has them."""


def encode_documents(task: ShardTask, keep_alive: Callable[[], None]) -> None:
    """Write a shard of documents; nothing is done if it is there already."""
    if encoded_shard(task) is not None:
        return
    tokenizer = loaded_tokenizer(task.tokenizer, task.end_of_document_token)
    quarantined: list[dict[str, str]] = []

    def documents() -> Iterator[EncodedRecord]:
        for ids, contents in batches(task, keep_alive):
            encoded = tokenizer.encode_documents([content.decode() for content in contents])
            for record_id, content, token_ids in zip(ids, contents, encoded, strict=True):
                if lost := tokenizer.num_bytes_lost(token_ids, len(content)):
                    detail = f"the tokenizer has no token for {lost:,} of its bytes"
                    fault = Fault(reason=Reason.unencodable, detail=detail, sample=sample_of(content))
                    quarantined.append(Quarantined(id=record_id, fault=fault).as_json())
                    continue
                yield EncodedRecord(id=record_id, token_ids=token_ids, is_target=None, num_bytes=len(content))

    commit_shard(task, documents(), quarantined, vocab_size=tokenizer.vocab_size, has_targets=False)


def encoded_shard(task: ShardTask) -> EncodedShard | None:
    """Return a shard that is there and whole; None if it has to be written."""
    try:
        committed = read_json(task.commit_file)
        if committed["key"] != task.key:
            return None
        files = {name: typed(FileEntry, entry) for name, entry in committed["files"].items()}
        if any((task.folder / name).stat().st_size != entry.num_bytes for name, entry in files.items()):
            return None
        counts = typed(ShardCounts, committed["counts"])
        return EncodedShard(counts=counts, files=files, quarantined=committed["quarantined"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def commit_shard(
    task: ShardTask,
    records: Iterable[EncodedRecord],
    quarantined: Sequence[dict[str, str]],
    *,
    vocab_size: int,
    has_targets: bool,
) -> None:
    """Write and commit the files of a shard.

    Args:
        task: which.
        records: in order; read to their end before `quarantined` is.
        quarantined: records that turned out unusable, as quarantine.jsonl has them.
        vocab_size: every token id is smaller.
        has_targets: whether some tokens are not to be learned.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    task.commits.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{task.source}.{task.name}.", dir=task.commits))
    try:
        counts = write_shard(work, task.name, records, vocab_size=vocab_size, has_targets=has_targets)
        files: dict[str, FileEntry] = {}
        for path in sorted(work.iterdir()):
            path.chmod(0o644)
            fsync(path)
            files[path.name] = FileEntry(num_bytes=path.stat().st_size, sha256=hash_file(path))
            os.replace(path, task.folder / path.name)
        fsync(task.folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    committed = {
        "key": task.key,
        "counts": asdict(counts),
        "files": {name: asdict(entry) for name, entry in files.items()},
        "quarantined": list(quarantined),
    }
    write_durably(task.commit_file, json.dumps(committed))


def batches(task: ShardTask, keep_alive: Callable[[], None]) -> Iterator[tuple[list[str], list[bytes]]]:
    """Yield the ids and contents of a shard's records, some at a time."""
    for piece in task.pieces:
        table = open_chunk(piece.chunk).select(["id", "content"])
        for first in range(0, len(piece.records), _RECORDS_AT_ONCE):
            keep_alive()
            some = table.take(piece.records[first : first + _RECORDS_AT_ONCE])
            yield some.column("id").to_pylist(), some.column("content").to_pylist()


@lru_cache(maxsize=1)
def loaded_tokenizer(directory: Path, end_of_document_token: str) -> Tokenizer:
    """Return a tokenizer, read once per process."""
    return Tokenizer.load(directory, end_of_document_token)


def shard_key(pieces: Sequence[Piece], chunk_hashes: Sequence[str], tokenizer_fingerprint: str) -> str:
    """Return a hash of what a shard is made of.

    Args:
        pieces: its records.
        chunk_hashes: sha256 of the chunk of each piece.
        tokenizer_fingerprint: of the tokenizer's files.
    """
    digest = hashlib.sha256(tokenizer_fingerprint.encode())
    for piece, chunk_hash in zip(pieces, chunk_hashes, strict=True):
        digest.update(chunk_hash.encode())
        digest.update(np.ascontiguousarray(piece.records, dtype="<i8").tobytes())
    return digest.hexdigest()
