"""The samples of one training stage, by index. Stateless: resuming is asking for another step.

Which samples a step holds depends on the config alone; a layout only says which replica reads which of them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from training.config.data_schema import SourceForm
from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.data.shards import PreparedData
from training.data.stage_order import NOTHING_LEFT_OUT, stage_order
from training.data.units import Piece, Row

References = Callable[[str, Sequence[int]], Sequence[float]]
"""(source, records of answers) -> their log-probability under the reference model, in nats."""

_SAMPLES_AT_ONCE = 4096
"""Whose units are found together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One training sequence."""

    source: str
    unit: int
    """Window or pack of the source; see `training/data/units.py`."""
    row: Row
    """Its tokens and targets."""
    pieces: list[Piece]
    """Which tokens of which records its targets are."""


class StageLoader:
    """Reads the global batches of one training stage.

    Args:
        prepared: the data.
        config: the run.
        training_stage: its name.
        left_out: of each training stage, how many batches it has left out and so drawn more than its steps.

    Raises:
        DataError: a source of the mixture is not prepared, or gives no sample.
    """

    def __init__(
        self,
        prepared: PreparedData,
        config: RunConfig,
        training_stage: str,
        *,
        left_out: Mapping[str, int] = NOTHING_LEFT_OUT,
    ) -> None:
        stage = config.stages[training_stage]
        self._sequence_length = stage.sequence_length
        self._batch_sizes = config.batch_sizes(training_stage)
        self._micro_batch_sequences = stage.micro_batch_sequences
        self._masks_documents = stage.masks_documents
        self.references: References | None = None
        """What the reference model gives the answers of pairs; to be set before `micro_batches` of kind preference."""
        self.order = stage_order(prepared, config, training_stage, left_out)
        """Which unit of which source each sample is."""
        self._group = lru_cache(maxsize=2)(self._compute_group)

    @property
    def notes(self) -> list[str]:
        """Sentences for people about what was left out."""
        return [note for place in range(len(self.order.sources)) for note in self.order.units(place).notes]

    def sample(self, index_in_stage: int) -> Sample:
        """Return the sample with an index that counts from 0 at the training stage's start."""
        [(source, unit)] = self.order.places(np.array([index_in_stage])).tolist()
        units = self.order.units(source)
        return Sample(source=self.order.sources[source], unit=unit, row=units.row(unit), pieces=units.pieces(unit))

    def micro_batches(self, batch: int, *, replica: int, num_replicas: int) -> list[MicroBatch]:
        """Return one replica's part of a global batch, in the order in which it is accumulated.

        Micro-batch m of replica r holds the samples m*(R*B)+r*B … +B of the global batch (R replicas, B sequences), so
        all replicas together hold the same global batch under every layout. A sample's id is its index in the whole
        run, so no two samples of a run share one.

        Args:
            batch: global batch, counted from 0 at the training stage's start.
            replica: this data replica.
            num_replicas: data replicas; with the micro-batch it divides the global batch.
        """
        sequences = self._batch_sizes.sequences(batch)
        size, remainder = divmod(sequences, num_replicas * self._micro_batch_sequences)
        assert remainder == 0, "a validated config divides evenly"
        samples = self._batch_samples(batch).reshape(size, num_replicas, self._micro_batch_sequences)[:, replica]
        return [self._micro_batch(part) for part in samples]

    def batch_id(self, batch: int) -> str:
        """Return 16 hex digits that tell global batches apart: a hash of (source, unit's place) of its samples."""
        places = self._places(self._batch_samples(batch))
        for source in np.unique(places[:, 0]).tolist():
            here = places[:, 0] == source
            places[here, 1] = self.order.units(source).identities(places[here, 1])
        digest = hashlib.sha256(repr((self.order.sources, self._sequence_length)).encode())
        digest.update(places.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def batch_samples(self, batch: int) -> range:
        """Return the indices in the training stage of a global batch's samples."""
        return range(self._batch_sizes.samples_before(batch), self._batch_sizes.samples_before(batch + 1))

    def batch_of(self, sample: int) -> int:
        """Return the global batch that holds a sample, by its index in the training stage."""
        return self._batch_sizes.num_batches((sample + 1) * self._sequence_length) - 1

    def _compute_group(self, group: int) -> np.ndarray:
        return self.order.places(np.arange(group * _SAMPLES_AT_ONCE, (group + 1) * _SAMPLES_AT_ONCE))

    def _batch_samples(self, batch: int) -> np.ndarray:
        return np.array(self.batch_samples(batch), dtype=np.int64)

    def _micro_batch(self, samples: np.ndarray) -> MicroBatch:
        places = self._places(samples).tolist()
        rows = [self.order.units(source).row(unit) for source, unit in places]
        return MicroBatch(
            input_ids_BT=torch.from_numpy(np.stack([row.input_ids_T for row in rows])),
            labels_BT=torch.from_numpy(np.stack([row.labels_T for row in rows])),
            sample_ids_B=torch.from_numpy(self.order.first_sample + samples),
            documents_BT=torch.from_numpy(np.stack([row.documents_T for row in rows]))
            if self._masks_documents
            else None,
            references_BA=None if self.references is None else self._references_of(places),
        )

    def _places(self, samples: np.ndarray) -> np.ndarray:
        """Return `order.places`, asked for many samples at a time: the next batches want their neighbours."""
        places = np.empty((len(samples), 2), dtype=np.int64)
        groups = samples // _SAMPLES_AT_ONCE
        for group in range(int(groups[0]), int(groups[-1]) + 1):
            here = groups == group
            places[here] = self._group(group)[samples[here] - group * _SAMPLES_AT_ONCE]
        return places

    def _references_of(self, places: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return float64 [B, A]: for each sample, of its answers in order, NaN where there are no more."""
        assert self.references is not None
        found = []
        for source, unit in places:
            units = self.order.units(source)
            assert units.stream.form is SourceForm.preferences, "the config checks know"
            found.append(self.references(self.order.sources[source], [p.record for p in units.pieces(unit)]))
        references_BA = torch.full((len(found), max(map(len, found))), torch.nan, dtype=torch.float64)
        for row, values in enumerate(found):
            references_BA[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
        return references_BA
