"""Builds prepared data and commits it by one rename.

A writer works in `<prepared_root>/.preparing-<key>.<host>.<pid>.<random>/` and renames its finished folder to
`<prepared_root>/<key>`. A kill leaves at most such a working folder, which the next writer on that host removes. Of two
writers at the same time the second to finish finds the name taken and drops its own, equal work.
"""

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset

from training.config.data_schema import DataConfig, PrepareData
from training.data.corpus import LICENCES, Corpus, is_held_out, read_documents
from training.data.manifest import (
    FileEntry,
    Manifest,
    SourceEntry,
    SplitEntry,
    determining_settings,
    directory_of,
    hash_file,
)
from training.data.shard_files import EncodedRecord, shard_name, token_dtype, write_shard
from training.data.shards import PREPARE_COMMAND, PreparedData
from training.data.tokenizer import Tokenizer
from training.durable_files import fsync
from training.errors import DataError, StorageError

_BATCH_DOCUMENTS = 64
"""Documents encoded at once: enough to keep all threads busy, few enough to hold their ids in memory."""


def ensure(
    data: DataConfig, *, prepare_command: str = PREPARE_COMMAND, between_batches: Callable[[], None] = lambda: None
) -> PreparedData:
    """Return the prepared data of a config; prepares it if it is missing and `data.prepare` is auto.

    Damaged data is never replaced here, since a job on another node may be reading it. `between_batches` is called
    again and again while data is prepared, and may raise to end that.

    Raises:
        DataError: it is damaged, or missing while `data.prepare` is require; the message holds `prepare_command`.
        StorageError: it cannot be written.
    """
    if data.prepare is PrepareData.auto and not directory_of(data).exists():
        return prepare(data, between_batches=between_batches)
    return PreparedData.open(data, prepare_command=prepare_command)


def prepare(data: DataConfig, *, between_batches: Callable[[], None] = lambda: None) -> PreparedData:
    """Return the prepared data of a config, built unless it is already there and whole. Damaged data is replaced.

    Raises:
        ConfigError: a source names no file, or the vocabulary is too small.
        DataError: a source has no document to train on, or cannot be read.
        StorageError: `data.prepared_root` cannot be written.
    """
    target = directory_of(data)
    _remove_leftovers(target.parent)  # of a writer killed after its commit, too
    if target.exists():
        try:
            return PreparedData.open(data, verify=True)
        except DataError:
            pass  # damaged: built again below, and replaced once the new folder is whole
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        owner = f"{socket.gethostname()}.{os.getpid()}"
        workdir = Path(tempfile.mkdtemp(prefix=f".preparing-{target.name}.{owner}.", dir=target.parent))
        try:
            _build(workdir / "data", data, cache_dir=workdir / "cache", between_batches=between_batches)
            if directory_of(data) != target:
                raise DataError("data.sources: files changed while they were read\n  -> prepare again when they rest")
            _commit(workdir, target, data)
        finally:
            shutil.rmtree(workdir, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"data.prepared_root={data.prepared_root}: it cannot be written: {error}\n"
            "  -> free space, mend its permissions, or set data.prepared_root to another folder"
        ) from error
    return PreparedData.open(data)


def _build(directory: Path, data: DataConfig, *, cache_dir: Path, between_batches: Callable[[], None]) -> None:
    """Write a whole prepared folder to `directory` and flush it to disk."""

    def batches(documents: Dataset) -> Iterator[list[str]]:
        for texts in _text_batches(documents):
            between_batches()
            yield texts

    directory.mkdir()
    corpora = {name: read_documents(name, data.sources[name], cache_dir=cache_dir) for name in sorted(data.sources)}
    splits = {name: _split(corpus, data.held_out_fraction) for name, corpus in corpora.items()}
    for name, (train, _) in splits.items():
        if not len(train):
            raise DataError(
                f"data.sources.{name}: all its documents are held out\n"
                f"  -> lower data.held_out_fraction={data.held_out_fraction}, or add documents"
            )
    training_texts = (text for train, _ in splits.values() for texts in batches(train) for text in texts)
    tokenizer = Tokenizer.train(training_texts, data.tokenizer_vocab_size)
    tokenizer.save(directory / "tokenizer.json")
    sources: dict[str, SourceEntry] = {}
    for name, (train, held_out) in splits.items():
        folder = directory / name
        folder.mkdir()
        splits_written = {
            split: SplitEntry(
                shards=[
                    write_shard(
                        folder,
                        shard_name(split, 0),
                        _encoded(documents, tokenizer, between_batches),
                        vocab_size=tokenizer.vocab_size,
                        has_targets=False,
                    )
                ]
            )
            for split, documents in (("train", train), ("held_out", held_out))
        }
        sources[name] = SourceEntry(
            form=data.sources[name].form,
            licence=LICENCES[data.sources[name].kind],
            tags=data.sources[name].tags,
            quarantined=corpora[name].skipped,
            **splits_written,
        )
    manifest = Manifest(
        settings=determining_settings(data),
        dtype=token_dtype(tokenizer.vocab_size).name,
        vocab_size=tokenizer.vocab_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        sources=sources,
        files={
            path.relative_to(directory).as_posix(): FileEntry(num_bytes=path.stat().st_size, sha256=hash_file(path))
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        },
    )
    (directory / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    _fsync_tree(directory)


def _split(corpus: Corpus, held_out_fraction: float) -> tuple[Dataset, Dataset]:
    """Return (training, held-out) documents, each in the source's order."""
    held_out = [is_held_out(document_id, held_out_fraction) for document_id in corpus.documents["id"]]
    return (
        corpus.documents.select([i for i, out in enumerate(held_out) if not out], keep_in_memory=True),
        corpus.documents.select([i for i, out in enumerate(held_out) if out], keep_in_memory=True),
    )


def _encoded(documents: Dataset, tokenizer: Tokenizer, between_batches: Callable[[], None]) -> Iterator[EncodedRecord]:
    for batch in documents.iter(batch_size=_BATCH_DOCUMENTS):
        between_batches()
        ids, texts = batch["id"], batch["text"]  # pyright: ignore[reportArgumentType, reportCallIssue]
        for record_id, text, token_ids in zip(ids, texts, tokenizer.encode_batch(texts), strict=True):
            yield EncodedRecord(
                id=record_id,
                token_ids=np.array([*token_ids, tokenizer.eos_id]),
                is_target=None,
                num_bytes=len(text.encode()),
            )


def _text_batches(documents: Dataset) -> Iterator[list[str]]:
    for batch in documents.iter(batch_size=_BATCH_DOCUMENTS):
        yield batch["text"]  # pyright: ignore[reportArgumentType, reportCallIssue]


def _commit(workdir: Path, target: Path, data: DataConfig) -> None:
    """Give the built folder its name; leave it if a whole one has taken the name meanwhile."""
    try:
        os.rename(workdir / "data", target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        try:
            PreparedData.open(data, verify=True)
            return
        except DataError:  # the damaged folder that is being replaced
            os.rename(target, workdir / "damaged")
            os.rename(workdir / "data", target)
    fsync(target.parent)


def _remove_leftovers(root: Path) -> None:
    """Remove working folders of writers of this host that are no longer alive."""
    for leftover in root.glob(".preparing-*.*.*.*"):
        host, pid, _ = leftover.name.split(".", 2)[2].rsplit(".", 2)
        if host != socket.gethostname():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(leftover, ignore_errors=True)
        except PermissionError:
            continue  # alive, and another user's


def _fsync_tree(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        fsync(path)
