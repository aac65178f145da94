"""The samples of one training stage, by index. Stateless: resuming is asking for another step.

Which samples a step holds depends on the config alone; a layout only says which replica reads which of them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.data.order import Mixture, WindowOrder, num_windows
from training.data.shards import PreparedData
from training.data.stream import RecordStream
from training.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One training sequence."""

    source: str
    window: int
    """Place in the source's training stream: the window starts at token window * sequence_length."""
    token_ids: np.ndarray
    """int64; sequence_length + 1 ids, so that every position has a next token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    tokens: RecordStream
    order: WindowOrder
    first_draw: int
    """Draws that earlier training stages have taken from this source with the same sequence length."""


class StageLoader:
    """Reads the global batches of one training stage.

    Args:
        prepared: the data.
        config: the run.
        training_stage: its name.
        left_out: of each earlier training stage, how many batches it has left out and so drawn more than its steps.

    Raises:
        DataError: a source of the mixture is not prepared, or shorter than one sequence.
    """

    def __init__(
        self,
        prepared: PreparedData,
        config: RunConfig,
        training_stage: str,
        *,
        left_out: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        stage = config.stages[training_stage]
        self._sequence_length = stage.sequence_length
        self._batch_sizes = config.batch_sizes(training_stage)
        self._micro_batch_sequences = stage.micro_batch_sequences
        self._end_of_document = prepared.tokenizer.eos_id if stage.masks_documents else None
        self._first_sample = _first_sample(config, training_stage, left_out)
        self._mixture = _mixture(config, training_stage, left_out)
        self._sources = [self._open(prepared, config, training_stage, name, left_out) for name in self._mixture.sources]

    def sample(self, index_in_stage: int) -> Sample:
        """Return the sample with an index that counts from 0 at the training stage's start."""
        [(source, window)] = self._places(np.array([index_in_stage]))
        return Sample(source=self._mixture.sources[source], window=int(window), token_ids=self._tokens(source, window))

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
        """Return 16 hex digits that tell global batches apart: a hash of (source, window start) of its samples."""
        places = self._places(self._batch_samples(batch))
        places[:, 1] *= self._sequence_length
        digest = hashlib.sha256(repr((self._mixture.sources, self._sequence_length)).encode())
        digest.update(places.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def batch_samples(self, batch: int) -> range:
        """Return the indices in the training stage of a global batch's samples."""
        return range(self._batch_sizes.samples_before(batch), self._batch_sizes.samples_before(batch + 1))

    def _batch_samples(self, batch: int) -> np.ndarray:
        return np.array(self.batch_samples(batch), dtype=np.int64)

    def _places(self, samples: np.ndarray) -> np.ndarray:
        """Return a row (place of the source, window) for each sample index."""
        source_indices, draws = self._mixture.draws(samples)
        windows = np.empty_like(draws)
        for i, source in enumerate(self._sources):
            here = source_indices == i
            windows[here] = source.order.windows(source.first_draw + draws[here])
        return np.stack([source_indices, windows], axis=1)

    def _tokens(self, source: int, window: int) -> np.ndarray:
        start = window * self._sequence_length
        return self._sources[source].tokens.tokens(start, start + self._sequence_length + 1)

    def _micro_batch(self, samples: np.ndarray) -> MicroBatch:
        token_ids = [self._tokens(source, window) for source, window in self._places(samples)]
        token_ids_BT = torch.from_numpy(np.stack(token_ids))
        input_ids_BT = token_ids_BT[:, :-1].contiguous()
        return MicroBatch(
            input_ids_BT=input_ids_BT,
            labels_BT=token_ids_BT[:, 1:].contiguous(),
            sample_ids_B=torch.from_numpy(self._first_sample + samples),
            documents_BT=None if self._end_of_document is None else _documents(input_ids_BT, self._end_of_document),
        )

    def _open(
        self, prepared: PreparedData, config: RunConfig, training_stage: str, name: str, left_out: Mapping[str, int]
    ) -> _Source:
        tokens = prepared.train(name)
        windows = num_windows(tokens.num_tokens, self._sequence_length)
        if not windows:
            raise DataError(
                f"stages.{training_stage}.mixture.{name}: its {tokens.num_tokens} training tokens are less than one "
                f"sequence of {self._sequence_length} + 1\n"
                "  -> shorten sequence_length, or give the source more documents"
            )
        order = WindowOrder(name, num_windows=windows, sequence_length=self._sequence_length, seed=config.run.seed)
        return _Source(tokens=tokens, order=order, first_draw=_draws_before(config, training_stage, name, left_out))


def _documents(input_ids_BT: torch.Tensor, end_of_document: int) -> torch.Tensor:
    """Return the number of each token's document; a token that ends one counts as the first of the next.

    Evaluations put that token before a text that has no other context, so the model is to meet it there in training
    too. Its own target, the next document's first token, is then one that belongs to what it sees; and the last token
    of a document still learns to end it. So no target is left out.
    """
    return (input_ids_BT == end_of_document).cumsum(-1)


def _mixture(config: RunConfig, training_stage: str, left_out: Mapping[str, int]) -> Mixture:
    """Return the mixture of a training stage, keyed by the global index of its first sample."""
    return Mixture(
        config.stages[training_stage].mixture,
        config_key=f"stages.{training_stage}.mixture",
        seed=config.run.seed,
        first_sample=_first_sample(config, training_stage, left_out),
    )


def _first_sample(config: RunConfig, training_stage: str, left_out: Mapping[str, int]) -> int:
    """Return the index in the run of a training stage's first sample."""
    return sum(_num_samples(config, name, left_out) for name in _earlier_stages(config, training_stage))


def _draws_before(config: RunConfig, training_stage: str, source: str, left_out: Mapping[str, int]) -> int:
    """Return the draws earlier training stages take from a source, of those that cut it into the same windows."""
    sequence_length = config.stages[training_stage].sequence_length
    return sum(
        _mixture(config, name, left_out).counts(_num_samples(config, name, left_out))[source]
        for name in _earlier_stages(config, training_stage)
        if config.stages[name].sequence_length == sequence_length and source in config.stages[name].mixture
    )


def _num_samples(config: RunConfig, training_stage: str, left_out: Mapping[str, int]) -> int:
    """Return the samples that a training stage draws, those it leaves out too."""
    batches = config.num_steps(training_stage) + left_out.get(training_stage, 0)
    return config.batch_sizes(training_stage).samples_before(batches)


def _earlier_stages(config: RunConfig, training_stage: str) -> list[str]:
    names = list(config.stages)
    return names[: names.index(training_stage)]
