"""Which of the records that were read are used, and in which split and shard: a pure function of what was read.

Of equal and of nearly equal records the first one stays, where held-out records come before training ones, then sources
by name and records by place. So nothing that is trained on equals, or nearly equals, what is held out.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.config.data_schema import ContaminationAction, DataConfig, NearDuplicatesConfig
from training.data.chunk_files import Piece
from training.data.chunks import Chunk
from training.data.corpus import is_held_out
from training.data.examination import Examined
from training.data.near_duplicates import SimilarDocuments
from training.data.readers.rows import Fault, Reason, sample_of
from training.data.records import Quarantined
from training.errors import DataError

_RECORDS_PER_CALL = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What is used of all sources."""

    shards: dict[str, dict[str, list[list[Piece]]]]
    """Source -> split (train, held_out) -> shard -> pieces, in order."""
    quarantined: dict[str, list[dict[str, str]]]
    """Source -> records that are not used, as quarantine.jsonl has them."""
    near_duplicates: list[dict[str, Any]]
    """Report on documents that were left out because they are nearly the same as others."""
    contamination: list[dict[str, Any]]
    """Report on items of benchmarks in training records."""

    def training_pieces(self) -> Iterator[tuple[str, Piece]]:
        """Yield (source, piece) of all that is trained on."""
        for source, splits in self.shards.items():
            for pieces in splits["train"]:
                yield from ((source, piece) for piece in pieces)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a record is."""

    source: str
    chunk: int
    record: int


class _Records:
    """All records that were read, with what becomes of them."""

    def __init__(self, data: DataConfig, sources: Mapping[str, Sequence[Chunk]]) -> None:
        self._sources = sources
        self.held_out = {
            name: [
                np.array([is_held_out(record_id, data.held_out_fraction_of(name)) for record_id in chunk.ids], bool)
                for chunk in chunks
            ]
            for name, chunks in sources.items()
        }
        self.used = {name: [np.ones(chunk.num_records, dtype=bool) for chunk in s] for name, s in sources.items()}
        self.quarantined = {name: [one for chunk in s for one in chunk.quarantined] for name, s in sources.items()}

    def by_rank(self) -> Iterator[_Place]:
        """Yield the records that are used, held-out ones first."""
        for wanted in (True, False):
            for name, chunks in self._sources.items():
                for number in range(len(chunks)):
                    here = self.used[name][number] & (self.held_out[name][number] == wanted)
                    yield from (_Place(name, number, record) for record in np.flatnonzero(here).tolist())

    def id_of(self, place: _Place) -> str:
        return self._sources[place.source][place.chunk].ids[place.record]

    def digest_of(self, place: _Place) -> bytes:
        return self._sources[place.source][place.chunk].digests[place.record]

    def is_held_out(self, place: _Place) -> bool:
        return bool(self.held_out[place.source][place.chunk][place.record])

    def leave_out(self, place: _Place, reason: Reason, detail: str) -> None:
        """Put a record into quarantine."""
        chunk = self._sources[place.source][place.chunk]
        fault = Fault(reason=reason, detail=detail, sample=sample_of(chunk.content_of(place.record)))
        self.used[place.source][place.chunk][place.record] = False
        self.quarantined[place.source].append(Quarantined(id=self.id_of(place), fault=fault).as_json())


def select(
    data: DataConfig,
    sources: Mapping[str, Sequence[Chunk]],
    examinations: Mapping[str, Sequence[Examined]],
    keep_alive: Callable[[], None],
) -> Selection:
    """Return what is used of the sources.

    Args:
        data: the config.
        sources: chunks of each, by name in order.
        examinations: of each source's chunks; empty where nothing was looked for.
        keep_alive: is called again and again; may raise to end it.

    Raises:
        DataError: a source has no record that can be used, or none to train on.
    """
    records = _Records(data, sources)
    _leave_out_copies(records, keep_alive)
    near_duplicates = list[dict[str, Any]]()
    if data.near_duplicates is not None:
        near_duplicates = _leave_out_near_duplicates(data.near_duplicates, records, examinations, keep_alive)
    contamination = list[dict[str, Any]]()
    if data.contamination is not None:
        is_removed = data.contamination.action is ContaminationAction.remove
        contamination = _report_items(records, examinations, is_removed=is_removed)
    shards = {
        name: {
            split: list(_shards(chunks, _wanted(records, name, is_out=is_out), data.shard_bytes))
            for split, is_out in (("train", False), ("held_out", True))
        }
        for name, chunks in sources.items()
    }
    for name, splits in shards.items():
        _check_used(data, name, splits, records.quarantined[name])
    return Selection(
        shards=shards,
        quarantined=records.quarantined,
        near_duplicates=near_duplicates,
        contamination=contamination,
    )


def _leave_out_copies(records: _Records, keep_alive: Callable[[], None]) -> None:
    """Leave out records that equal another source's; copies within a source were left out as it was read."""
    first: dict[bytes, _Place] = {}
    for count, place in enumerate(list(records.by_rank())):
        if count % _RECORDS_PER_CALL == 0:
            keep_alive()
        earlier = first.setdefault(records.digest_of(place), place)
        if earlier is not place:
            records.leave_out(place, Reason.duplicate, f"of {earlier.source}: {records.id_of(earlier)}")


def _leave_out_near_duplicates(
    config: NearDuplicatesConfig,
    records: _Records,
    examinations: Mapping[str, Sequence[Examined]],
    keep_alive: Callable[[], None],
) -> list[dict[str, Any]]:
    similar, report = SimilarDocuments(config), list[dict[str, Any]]()
    places = list(records.by_rank())
    for number, place in enumerate(places):
        if number % _RECORDS_PER_CALL == 0:
            keep_alive()
        signatures = examinations[place.source][place.chunk].signatures
        if signatures is None:
            continue
        if (found := similar.add_unless_similar(number, signatures[place.record])) is None:
            continue
        earlier, similarity = places[found[0]], round(found[1], 6)
        kept = f"{earlier.source}: {records.id_of(earlier)}"
        records.leave_out(place, Reason.near_duplicate, f"of {kept}, similarity {similarity:.2f}")
        report.append(
            {
                "source": place.source,
                "id": records.id_of(place),
                "kept_source": earlier.source,
                "kept_id": records.id_of(earlier),
                "similarity": similarity,
            }
        )
    return report


def _report_items(
    records: _Records, examinations: Mapping[str, Sequence[Examined]], *, is_removed: bool
) -> list[dict[str, Any]]:
    report = list[dict[str, Any]]()
    for source, chunks in examinations.items():
        for number, examined in enumerate(chunks):
            found = defaultdict[int, list[dict[str, Any]]](list)
            for item in examined.items:
                found[item.record].append(
                    {"benchmark": item.benchmark, "item": item.item, "share": round(item.share, 6)}
                )
            for record, items in found.items():
                place = _Place(source, number, record)
                if not records.used[source][number][record] or records.is_held_out(place):
                    continue
                report += [
                    {"source": source, "id": records.id_of(place), **item, "is_removed": is_removed} for item in items
                ]
                if is_removed:
                    worst = max(items, key=lambda item: item["share"])
                    detail = f"{worst['share']:.0%} of item {worst['item']} of {worst['benchmark']}"
                    records.leave_out(place, Reason.contaminated, detail)
    return report


def _wanted(records: _Records, name: str, *, is_out: bool) -> list[np.ndarray]:
    return [
        np.flatnonzero(used & (held_out == is_out))
        for used, held_out in zip(records.used[name], records.held_out[name], strict=True)
    ]


def _shards(chunks: Sequence[Chunk], wanted: Sequence[np.ndarray], shard_bytes: int) -> Iterator[list[Piece]]:
    """Yield the pieces of each shard: consecutive records of about so many bytes, one at least."""
    pieces, num_bytes = list[Piece](), 0
    for chunk, records in zip(chunks, wanted, strict=True):
        ends = np.cumsum(np.array(chunk.lengths_bytes, dtype=np.int64)[records])
        begin, before = 0, 0
        while begin < len(records):
            end = int(np.searchsorted(ends, before + shard_bytes - num_bytes, side="left")) + 1
            end = min(end, len(records))
            piece_bytes = int(ends[end - 1]) - before
            pieces.append(Piece(chunk=chunk.path, records=records[begin:end], num_bytes=piece_bytes))
            begin, before, num_bytes = end, int(ends[end - 1]), num_bytes + piece_bytes
            if num_bytes >= shard_bytes:
                yield pieces
                pieces, num_bytes = [], 0
    if pieces:
        yield pieces


def _check_used(
    data: DataConfig, name: str, splits: Mapping[str, list[list[Piece]]], quarantined: Sequence[dict[str, str]]
) -> None:
    if splits["train"] or (splits["held_out"] and data.held_out_fraction_of(name) == 1):
        return
    if splits["held_out"]:
        raise DataError(
            f"data.sources.{name}: all its records that can be used are held out\n"
            f"  -> lower data.held_out_fraction={data.held_out_fraction_of(name)} (or the source's own), add records, "
            f"or make it a validation set: data.sources.{name}.held_out_fraction=1"
        )
    reasons = defaultdict[str, int](int)
    for one in quarantined:
        reasons[one["reason"]] += 1
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "it has none at all"
    shown = f", the first one: {quarantined[0]['id']}: {quarantined[0]['detail']}" if quarantined else ""
    raise DataError(
        f"data.sources.{name}: it has no record that can be used ({told}{shown})\n"
        "  -> name what has records, or mend path, form and fields"
    )
