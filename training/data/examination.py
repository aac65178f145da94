"""What a chunk of records is looked through for: signatures of documents, items of benchmarks. One process at a time.

<chunk>.signatures.npy   uint32, one row per record; only where near duplicates are looked for
<chunk>.examined.json    items that were found in records; written last, so that it commits the examination
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from training.config.data_schema import NearDuplicatesConfig, SourceForm
from training.data.benchmark_passages import benchmark_passages
from training.data.chunk_files import open_chunk
from training.data.manifest import hash_file
from training.data.near_duplicates import Signatures
from training.data.text_overlap import OverlapSearch
from training.durable_files import fsync, write_durably
from training.plain_files import read_json, typed

_RECORDS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """What is to be done with one chunk; sent to a process."""

    chunk: Path
    """Its Arrow file."""
    form: SourceForm
    near_duplicates: NearDuplicatesConfig | None
    benchmarks: tuple[str, ...]
    prepared_root: Path
    """Where the benchmarks lie prepared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundItem:
    """Some of a benchmark's item stands in a record."""

    record: int
    """Its place in the chunk."""
    benchmark: str
    item: str
    share: float
    """Of the item's n-grams."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What was found in a chunk."""

    items: list[FoundItem]
    signatures: np.ndarray | None
    """uint32, one row per record; None where they are not wanted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Committed:
    chunk_sha256: str
    signatures_sha256: str | None
    items: list[dict[str, Any]]


def examine(task: Examination, keep_alive: Callable[[], None]) -> None:
    """Examine a chunk and commit what was found; nothing is done if that is there already."""
    if examined(task) is not None:
        return
    wants_signatures = task.near_duplicates is not None and task.form is SourceForm.documents
    signatures = Signatures(task.near_duplicates) if task.near_duplicates and wants_signatures else None
    search = _search(task.prepared_root, task.benchmarks) if task.benchmarks else None
    rows: list[np.ndarray] = []
    items: list[FoundItem] = []
    for first, texts in _texts(task):
        keep_alive()
        if signatures is not None:
            rows += [signatures.of(text) for text in texts]
        for place, found in enumerate(search.found_in(texts) if search is not None else (), start=first):
            for benchmark, shares in found.items():
                items += [
                    FoundItem(record=place, benchmark=benchmark, item=item, share=share)
                    for item, share in shares.items()
                ]
    signatures_sha256 = None
    if task.near_duplicates and wants_signatures:
        path = task.chunk.with_suffix(".signatures.npy")
        shape = (len(rows), task.near_duplicates.num_hashes)
        np.save(path, np.array(rows, dtype=np.uint32).reshape(shape), allow_pickle=False)
        fsync(path)
        signatures_sha256 = hash_file(path)
    committed = _Committed(
        chunk_sha256=hash_file(task.chunk),
        signatures_sha256=signatures_sha256,
        items=[asdict(item) for item in items],
    )
    write_durably(task.chunk.with_suffix(".examined.json"), json.dumps(asdict(committed)))


def examined(task: Examination) -> Examined | None:
    """Return what was found in a chunk; None if that is not there, or not of this chunk."""
    path = task.chunk.with_suffix(".signatures.npy")
    try:
        committed = typed(_Committed, read_json(task.chunk.with_suffix(".examined.json")))
        items = [typed(FoundItem, item) for item in committed.items]
        if committed.chunk_sha256 != hash_file(task.chunk):
            return None
        if committed.signatures_sha256 is None:
            return Examined(items=items, signatures=None)
        if committed.signatures_sha256 != hash_file(path):
            return None
        return Examined(items=items, signatures=np.load(path, allow_pickle=False))
    except (FileNotFoundError, ValueError):
        return None


@cache
def _search(prepared_root: Path, benchmarks: tuple[str, ...]) -> OverlapSearch:
    return OverlapSearch({name: benchmark_passages(prepared_root, name) for name in benchmarks})


def _texts(task: Examination) -> Iterator[tuple[int, list[str]]]:
    """Yield (place of the first, texts of records) of a chunk; of a conversation all texts in it together."""
    contents = open_chunk(task.chunk).column("content")
    for first in range(0, len(contents), _RECORDS_AT_ONCE):
        texts = [content.decode() for content in contents.slice(first, _RECORDS_AT_ONCE).to_pylist()]
        if task.form is not SourceForm.documents:
            texts = ["\n".join(texts_of(text)) for text in texts]
        yield first, texts


def texts_of(record: str) -> Iterator[str]:
    """Yield the texts in a record of conversations or preferences that was written as JSON."""
    yield from _strings(json.loads(record))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _strings(child)
