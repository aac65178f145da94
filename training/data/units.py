"""What a source is cut into for samples: windows of its stream, or packs of whole records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from training.config.data_schema import SourceForm
from training.config.schema import StageConfig
from training.config.stage_schema import Packing as PackingKind
from training.data.pack_table import Packing, PackTable
from training.data.shards import PreparedData
from training.data.stream import RecordStream
from training.models.loss import IGNORED_LABEL


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A range of a source's tokens that are targets of one sample, all of the same record."""

    record: int
    first: int
    """Place of the first one in the source's stream."""
    stop: int
    """One after the last one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample of T positions."""

    input_ids_T: np.ndarray
    """int64."""
    labels_T: np.ndarray
    """int64; the target after each position, IGNORED_LABEL where there is none."""
    documents_T: np.ndarray
    """int64; number of each position's record within the sample, rising; of a pack 0, 1, … for its pieces in order."""


class Units(Protocol):
    """The units of one source."""

    stream: RecordStream

    @property
    def key(self) -> tuple[int | str, ...]:
        """What the order of units is keyed by: training stages with the same one go on where the other stopped."""
        ...

    @property
    def num_units(self) -> int:
        """Number of units; an epoch has each of them once."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for people about what was left out."""
        ...

    def row(self, unit: int) -> Row:
        """Return a unit as a sample."""
        ...

    def pieces(self, unit: int) -> list[Piece]:
        """Return which tokens of which records are a unit's targets, in order."""
        ...

    def units_of(self, record: int) -> list[int]:
        """Return the units in which tokens of a record are targets."""
        ...

    def identities(self, units: np.ndarray) -> np.ndarray:
        """Return an int64 for each unit by which it can be told from others, of other sequence lengths too."""
        ...


class Windows:
    """A stream of documents in windows of T tokens, side by side; the rest at its end is in none.

    Args:
        stream: the source's training records.
        sequence_length: T.
        eos_id: the end-of-document token. One that ends a document counts as the first of the next: evaluations put it
            before a text that has no other context, so the model is to meet it there in training too. Its own target,
            the next document's first token, is then one that belongs to what it sees; and the last token of a document
            still learns to end it. So no target is left out.
    """

    notes: Sequence[str] = ()

    def __init__(self, stream: RecordStream, sequence_length: int, eos_id: int) -> None:
        self.stream = stream
        self._length = sequence_length
        self._eos_id = eos_id

    @property
    def key(self) -> tuple[int | str, ...]:
        """See `Units`."""
        return (self.stream.name, self._length)

    @property
    def num_units(self) -> int:
        """See `Units`."""
        return max(0, (self.stream.num_tokens - 1) // self._length)

    def row(self, unit: int) -> Row:
        """See `Units`."""
        tokens = self.stream.tokens(unit * self._length, (unit + 1) * self._length + 1)
        return Row(input_ids_T=tokens[:-1], labels_T=tokens[1:], documents_T=np.cumsum(tokens[:-1] == self._eos_id))

    def pieces(self, unit: int) -> list[Piece]:
        """See `Units`."""
        first = unit * self._length + 1
        begin, end = self.stream.records_at(np.array([first, first + self._length - 1])).tolist()
        starts = self.stream.starts(np.arange(begin, end + 2)).tolist()
        return [
            Piece(record=record, first=max(starts[i], first), stop=min(starts[i + 1], first + self._length))
            for i, record in enumerate(range(begin, end + 1))
        ]

    def units_of(self, record: int) -> list[int]:
        """See `Units`."""
        start, end = self.stream.starts_of(record)
        units = range(max(0, start - 1) // self._length, (end - 2) // self._length + 1)
        return [unit for unit in units if unit < self.num_units]

    def identities(self, units: np.ndarray) -> np.ndarray:
        """See `Units`."""
        return units * self._length


class Packs:
    """Whole records of a source in packs of at most T tokens.

    Args:
        stream: the source's training records.
        table: their packs.
        packing: how they were packed.
        eos_id: the end-of-document token; it stands before each document, and in the room that is left.
    """

    def __init__(self, stream: RecordStream, table: PackTable, packing: Packing, eos_id: int) -> None:
        self.stream = stream
        self._table = table
        self._packing = packing
        self._length = packing.sequence_length
        self._eos_id = eos_id

    @property
    def key(self) -> tuple[int | str, ...]:
        """See `Units`."""
        return (self.stream.name, self._length, "packs", self._packing.min_document_tokens)

    @property
    def num_units(self) -> int:
        """See `Units`."""
        return self._table.num_packs

    @property
    def notes(self) -> Sequence[str]:
        """See `Units`."""
        table, name = self._table, self.stream.name
        if not table.num_packs:
            return ()
        full = table.num_targets / (table.num_packs * self._length)
        notes = [f"{name}: {table.num_packs:,} packs of {self._length:,} tokens, {full:.1%} full"]
        if table.num_short:
            notes.append(f"{name}: {table.num_short:,} records are shorter than min_document_tokens and left out")
        if table.num_long:
            what = "pairs are longer than a sample and left out"
            if self.stream.form is SourceForm.conversations:
                what = "conversations are longer than a sample and cut off at its end"
            notes.append(f"{name}: {table.num_long:,} {what}")
        return notes

    def row(self, unit: int) -> Row:
        """See `Units`."""
        input_ids_T = np.full(self._length, self._eos_id, dtype=np.int64)
        labels_T = np.full(self._length, IGNORED_LABEL, dtype=np.int64)
        first, stop = self._bounds(unit)
        documents_T = np.full(self._length, len(first), dtype=np.int64)
        place = 0
        for number, (begin, end) in enumerate(zip(first.tolist(), stop.tolist(), strict=True)):
            mine = slice(place, place + end - begin)
            tokens = self.stream.tokens(max(begin - 1, 0), end)
            if begin == 0:  # before any other document's first token stands the end of the one before it
                tokens = np.concatenate([[self._eos_id], tokens])
            input_ids_T[mine], labels_T[mine] = tokens[:-1], tokens[1:]
            if self.stream.form is not SourceForm.documents:
                labels_T[mine][~self.stream.is_target(begin, end)] = IGNORED_LABEL
            documents_T[mine] = number
            place = mine.stop
        return Row(input_ids_T=input_ids_T, labels_T=labels_T, documents_T=documents_T)

    def pieces(self, unit: int) -> list[Piece]:
        """See `Units`."""
        first, stop = self._bounds(unit)
        records = self.stream.records_at(first)
        return [
            Piece(record=record, first=begin, stop=end)
            for record, begin, end in zip(records.tolist(), first.tolist(), stop.tolist(), strict=True)
        ]

    def units_of(self, record: int) -> list[int]:
        """See `Units`."""
        start, end = self.stream.starts_of(record)
        pieces = np.flatnonzero((self._table.first >= start) & (self._table.first < end))
        return sorted(set((np.searchsorted(self._table.packs, pieces, side="right") - 1).tolist()))

    def identities(self, units: np.ndarray) -> np.ndarray:
        """See `Units`."""
        return self._table.first[self._table.packs[units]]

    def _bounds(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        pieces = slice(*self._table.packs[unit : unit + 2].tolist())
        return np.asarray(self._table.first[pieces]), np.asarray(self._table.stop[pieces])


def open_units(prepared: PreparedData, stage: StageConfig, source: str, *, root: Path) -> Units:
    """Return the units that a training stage cuts a source into.

    Args:
        prepared: the data.
        stage: the training stage.
        source: its name.
        root: the folder of prepared data.

    Raises:
        DataError: the source is not prepared, or damaged.
        StorageError: a table of packs cannot be kept.
    """
    stream, eos_id = prepared.train(source), prepared.tokenizer.eos_id
    if stage.packs_by is PackingKind.sequential:
        return Windows(stream, stage.sequence_length, eos_id)
    packing = Packing(
        data_fingerprint=prepared.fingerprint,
        source=source,
        sequence_length=stage.sequence_length,
        min_document_tokens=stage.min_document_tokens or 1,
    )
    return Packs(stream, PackTable.open(root, packing, stream), packing, eos_id)
