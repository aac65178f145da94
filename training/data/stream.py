"""All shards of one split of a source as one row of tokens, cut into records."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np

from training.config.data_schema import SourceForm
from training.data.shard_files import DamagedFile, Shard
from training.errors import DataError

_Read = TypeVar("_Read")


class RecordStream:
    """Records by number, tokens by place; both count over all shards.

    Of preferences, records 2n and 2n+1 are the chosen and the rejected answer of pair n. Every method raises DataError
    where a file is not what was written.

    Args:
        name: of the source.
        form: what its records are.
        shards: in order.
        damaged: makes an error of what is wrong with a file.
    """

    def __init__(
        self, name: str, form: SourceForm, shards: Sequence[Shard], damaged: Callable[[DamagedFile], DataError]
    ) -> None:
        self.name = name
        self.form = form
        self._shards = shards
        self._damaged = damaged
        self._first_tokens = np.array([0, *accumulate(shard.counts.num_tokens for shard in shards)])
        self._first_records = np.array([0, *accumulate(shard.counts.num_records for shard in shards)])
        self.num_tokens = int(self._first_tokens[-1])
        """Tokens of all records."""
        self.num_records = int(self._first_records[-1])
        """Records."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self._shards)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return the token ids at places start … stop-1, int64."""
        return self._gather(start, stop, lambda shard: shard.tokens).astype(np.int64)

    def is_target(self, start: int, stop: int) -> np.ndarray:
        """Return which of the tokens at places start … stop-1 are to be learned, bool."""
        if self.form is SourceForm.documents:
            return np.ones(stop - start, dtype=bool)
        return self._gather(start, stop, _targets_of).astype(bool)

    def starts(self, records: np.ndarray) -> np.ndarray:
        """Return the places at which records start; the number of records stands for the end of the last one."""
        shards = np.searchsorted(self._first_records, records, side="right") - 1
        places = np.empty(len(records), dtype=np.int64)
        for number in np.unique(shards):
            here = shards == number
            if number == len(self._shards):
                places[here] = self.num_tokens
                continue
            local = records[here] - self._first_records[number]
            places[here] = self._first_tokens[number] + self._file(lambda s: s.starts, number)[local]
        return places

    def starts_of(self, record: int) -> tuple[int, int]:
        """Return the places at which a record begins and ends."""
        start, end = self.starts(np.array([record, record + 1])).tolist()
        return start, end

    def records_at(self, places: np.ndarray) -> np.ndarray:
        """Return the records that tokens belong to."""
        shards = np.searchsorted(self._first_tokens, places, side="right") - 1
        records = np.empty(len(places), dtype=np.int64)
        for number in np.unique(shards):
            here = shards == number
            starts = self._file(lambda s: s.starts, number)
            local = np.searchsorted(starts, places[here] - self._first_tokens[number], side="right") - 1
            records[here] = self._first_records[number] + local
        return records

    def lengths_of_shard(self, number: int) -> tuple[int, np.ndarray]:
        """Return the number of a shard's first record, and the tokens of each of its records."""
        return int(self._first_records[number]), np.diff(self._file(lambda s: s.starts, number))

    def id_of(self, record: int) -> str:
        """Return the id of a record; both records of a pair have the pair's."""
        number = int(np.searchsorted(self._first_records, record, side="right") - 1)
        return self._file(lambda shard: shard.id_of(record - int(self._first_records[number])), number)

    def records_with_id(self, record_id: str) -> list[int]:
        """Return the records that have an id, in order; reads all ids."""
        found: list[int] = []
        for number, first in enumerate(self._first_records[:-1].tolist()):
            found += [first + record for record in self._file(lambda shard: shard.records_with_id(record_id), number)]
        return found

    def _gather(self, start: int, stop: int, file: Callable[[Shard], np.ndarray]) -> np.ndarray:
        assert 0 <= start <= stop <= self.num_tokens, f"source {self.name} has no tokens {start} to {stop}"
        number = int(np.searchsorted(self._first_tokens, start, side="right") - 1)
        parts = []
        while start < stop:
            first, end = int(self._first_tokens[number]), int(self._first_tokens[number + 1])
            parts.append(self._file(file, number)[start - first : min(stop, end) - first])
            start, number = min(stop, end), number + 1
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.int64), *parts])

    def _file(self, read: Callable[[Shard], _Read], number: int) -> _Read:
        try:
            return read(self._shards[number])
        except DamagedFile as error:
            raise self._damaged(error) from error


def _targets_of(shard: Shard) -> np.ndarray:
    assert shard.targets is not None
    return shard.targets
