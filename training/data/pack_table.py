"""Which pieces of records each pack of a source has, made once and kept beside the prepared data.

    <prepared_root>/packs/<key>/{first,stop,packs}.npy, table.json

Pieces of one pack stand side by side. A piece is a range of targets: the tokens first … stop-1 of the source's stream,
each of which is to be predicted from the one before it. A document of n tokens is n targets, its first one predicted
from the end-of-document token; one that is longer than a sample is cut into samples and a rest. A conversation is n-1
targets and is cut off at a sample's end. The two answers of a pair are two pieces of one pack, chosen before rejected.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from training.config.data_schema import SourceForm
from training.data.packing import best_fit
from training.data.shard_files import read_index
from training.data.stream import RecordStream
from training.durable_files import fsync, write_durably
from training.errors import DataError, StorageError
from training.plain_files import read_json, typed

FORMAT_VERSION = 1
"""Raised when the same records would be packed differently."""
_PIECES_AT_ONCE = 2**20
"""Packed together: enough for nearly full packs, few enough to hold in memory."""
_ARRAYS = ("first", "stop", "packs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """What the packs of a source follow from, besides its records."""

    data_fingerprint: str
    source: str
    sequence_length: int
    """Tokens of a pack."""
    min_document_tokens: int
    """Shorter records are left out."""

    def key(self) -> str:
        """Return the name of the table's folder."""
        text = json.dumps([FORMAT_VERSION, *asdict(self).values()])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counts:
    """Content of table.json, written last."""

    num_pieces: int
    num_packs: int
    num_targets: int
    num_short: int
    num_long: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PackTable:
    """The packs of a source."""

    first: np.ndarray
    """int64; place in the source's stream of each piece's first target."""
    stop: np.ndarray
    """int64; one after its last target."""
    packs: np.ndarray
    """int64; the first piece of each pack, and the number of pieces as last entry."""
    num_targets: int
    """Tokens of all pieces."""
    num_short: int
    """Records that were left out because they are too short."""
    num_long: int
    """Conversations that were cut off, or pairs that were left out, because a sample cannot hold them."""

    @property
    def num_packs(self) -> int:
        """Number of packs."""
        return len(self.packs) - 1

    @classmethod
    def open(cls, root: Path, packing: Packing, stream: RecordStream) -> Self:
        """Return the packs of a source, from their folder or, if there is none, made now and kept there.

        Of several processes that make them at the same time all have the same, and the first one's are kept.

        Args:
            root: the folder of prepared data.
            packing: how they are packed.
            stream: the source's training records.

        Raises:
            DataError: a file is damaged.
            StorageError: they cannot be kept.
        """
        folder = root / "packs" / packing.key()
        if not folder.is_dir():
            _write(folder, _pack(stream, packing))
        return cls._read(folder)

    @classmethod
    def _read(cls, folder: Path) -> Self:
        try:
            counts = typed(_Counts, read_json(folder / "table.json"))
            sizes = {"first": counts.num_pieces, "stop": counts.num_pieces, "packs": counts.num_packs + 1}
            arrays = {name: read_index(folder / f"{name}.npy", sizes[name]) for name in _ARRAYS}
        except (OSError, ValueError) as error:
            raise DataError(f"the table of packs in {folder} is damaged: {error}\n  -> remove that folder") from error
        return cls(**arrays, num_targets=counts.num_targets, num_short=counts.num_short, num_long=counts.num_long)


@dataclass(kw_only=True, slots=True)
class _Made:
    first: list[np.ndarray]
    stop: list[np.ndarray]
    sizes: list[np.ndarray]
    num_short: int = 0
    num_long: int = 0


def _pack(stream: RecordStream, packing: Packing) -> _Made:
    made = _Made(first=[], stop=[], sizes=[])
    for first, stop in _pieces(stream, packing, made):
        if stream.form is SourceForm.preferences:
            of_pair = (stop - first).reshape(-1, 2)
            order, packs = best_fit(of_pair.sum(1), packing.sequence_length)
            order, packs = (2 * order[:, None] + np.arange(2)).ravel(), 2 * packs
        else:
            order, packs = best_fit(stop - first, packing.sequence_length)
        made.first.append(first[order])
        made.stop.append(stop[order])
        made.sizes.append(np.diff(packs))
    return made


def _pieces(stream: RecordStream, packing: Packing, made: _Made) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (first, stop) of pieces, about as many at a time as are packed together."""
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    num_waiting = place = 0
    for number in range(stream.num_shards):
        lengths = stream.lengths_of_shard(number)[1]
        starts = place + np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        place += int(lengths.sum())
        pieces = _pieces_of(starts, lengths, stream.form, packing, made)
        waiting.append(pieces)
        num_waiting += len(pieces[0])
        if num_waiting >= _PIECES_AT_ONCE or number == stream.num_shards - 1:
            yield np.concatenate([first for first, _ in waiting]), np.concatenate([stop for _, stop in waiting])
            waiting, num_waiting = [], 0


def _pieces_of(
    starts: np.ndarray, lengths: np.ndarray, form: SourceForm, packing: Packing, made: _Made
) -> tuple[np.ndarray, np.ndarray]:
    size, least = packing.sequence_length, packing.min_document_tokens
    match form:
        case SourceForm.documents:
            is_used = lengths >= least
            made.num_short += int((~is_used).sum())
            firsts, ends = starts[is_used], (starts + lengths)[is_used]
            counts = -(-(ends - firsts) // size)
            first = np.repeat(firsts, counts) + size * (
                np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            )
            return first, np.minimum(first + size, np.repeat(ends, counts))
        case SourceForm.conversations:
            is_used = lengths >= max(least, 2)
            made.num_short += int((~is_used).sum())
            first, end = starts[is_used] + 1, (starts + lengths)[is_used]
            made.num_long += int((end - first > size).sum())
            return first, np.minimum(end, first + size)
        case SourceForm.preferences:
            targets = (lengths - 1).reshape(-1, 2)
            is_long, is_short = targets.sum(1) > size, lengths.reshape(-1, 2).min(1) < max(least, 2)
            made.num_long += int((is_long & ~is_short).sum())
            made.num_short += int(is_short.sum())
            is_used = np.repeat(~is_long & ~is_short, 2)
            return starts[is_used] + 1, (starts + lengths)[is_used]


def _write(folder: Path, made: _Made) -> None:
    none = [np.zeros(0, np.int64)]
    first, stop, sizes = (np.concatenate(none + parts) for parts in (made.first, made.stop, made.sizes))
    counts = _Counts(
        num_pieces=len(first),
        num_packs=len(sizes),
        num_targets=int((stop - first).sum()),
        num_short=made.num_short,
        num_long=made.num_long,
    )
    arrays = {"first": first, "stop": stop, "packs": np.concatenate([[0], np.cumsum(sizes)])}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, array in arrays.items():
                np.save(work / f"{name}.npy", array.astype("<i8"), allow_pickle=False)
                fsync(work / f"{name}.npy")
            write_durably(work / "table.json", json.dumps(asdict(counts)) + "\n")
            try:
                os.rename(work, folder)
            except OSError:
                if not folder.is_dir():  # another process was first: it has made the same
                    raise
            fsync(folder.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error}\n  -> free space, or mend the permissions of data.prepared_root"
        ) from error
