"""Log-probabilities of answers under the reference model of DPO: computed once, kept in the run directory.

The reference is the model as it was when the training stage began. Its answer to every pair is all that DPO asks of it
(arXiv:2305.18290, equation 7), so no second copy of the weights is held: the engine that is about to train scores every
answer of the training stage before the first step, and the numbers are kept in

    RUN_DIR/references/<training stage>/{<source>.npy, table.json}
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from training.data.batch import MicroBatch
from training.data.loader import StageLoader
from training.data.shard_files import read_index
from training.data.stream import RecordStream
from training.durable_files import write_durably
from training.engine.process_group import ProcessGroup
from training.errors import DataError, StorageError
from training.models.loss import IGNORED_LABEL
from training.plain_files import read_json, typed
from training.stages.interruption import InterruptibleInference

_SENT_ANSWERS = 2**16
"""Numbers that are summed over ranks at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """Content of table.json, written last."""

    data_fingerprint: str
    weights: str
    """Which weights were the reference."""
    sources: dict[str, int]
    """Source -> its records."""
    files_sha256: dict[str, str]


class References:
    """Log-probabilities of answers, in nats, by source and record.

    Args:
        values: source -> float64 of each record, NaN where it is not known.
    """

    def __init__(self, values: Mapping[str, np.ndarray]) -> None:
        self._values = values

    def __call__(self, source: str, records: Sequence[int]) -> list[float]:
        """Return those of some records, all known."""
        found = self._values[source][list(records)].tolist()
        assert not any(map(np.isnan, found)), "they were computed for all answers of the training stage"
        return found

    def lacks(self, wanted: Mapping[str, np.ndarray]) -> bool:
        """Return whether one of the wanted records (source -> numbers) is not known."""
        return any(
            source not in self._values or np.isnan(self._values[source][records]).any()
            for source, records in wanted.items()
        )


def answers_of(loader: StageLoader, num_samples: int) -> dict[str, np.ndarray]:
    """Return source -> the records that the first samples of a training stage hold, rising."""
    places = loader.order.places(np.arange(num_samples))
    found = {}
    for place, source in enumerate(loader.order.sources):
        units = loader.order.units(place)
        drawn = np.unique(places[places[:, 0] == place, 1]).tolist()
        records = [piece.record for unit in drawn for piece in units.pieces(unit)]
        found[source] = np.unique(np.array(records, dtype=np.int64))
    return found


def compute(
    engine: InterruptibleInference,
    processes: ProcessGroup,
    loader: StageLoader,
    wanted: Mapping[str, np.ndarray],
    *,
    batch_sequences: int,
) -> References:
    """Return what the engine's model gives the wanted answers; collective, the work is shared by all replicas.

    Args:
        engine: with the weights of the reference.
        processes: all ranks.
        loader: of the training stage.
        wanted: source -> records.
        batch_sequences: answers scored at once on a replica.

    Raises:
        Stopped: the run was told to stop.
    """
    layout, rank = engine.layout, processes.rank
    replica, num_replicas = layout.replica_of(rank), layout.num_replicas
    tells = layout.pipeline_stage_of(rank) == 0 and layout.sequence_part_of(rank) == 0
    values = {}
    for place, source in enumerate(loader.order.sources):
        stream = loader.order.units(place).stream
        values[source] = np.full(stream.num_records, np.nan)
        records = wanted[source]
        scores = np.zeros(len(records))
        # Answers of one length side by side: a batch is as long as its longest one.
        by_length = np.argsort(-(stream.starts(records + 1) - stream.starts(records)), kind="stable")
        for first in range(0, len(records), batch_sequences * num_replicas):
            mine = by_length[first + replica * batch_sequences :][:batch_sequences]
            shown = mine if len(mine) else by_length[:1]  # a replica that has run out scores too: it is collective
            found = engine.score(_batch(stream, records[shown])).logprob_B.numpy()
            if tells and len(mine):
                scores[mine] = found
        for first in range(0, len(records), _SENT_ANSWERS):
            part = slice(first, first + _SENT_ANSWERS)
            scores[part] = processes.sum(scores[part].tolist())
        values[source][records] = scores
    return References(values)


def save(references: References, directory: Path, *, data_fingerprint: str, weights: str) -> None:
    """Keep them in a folder; what an earlier start kept there is replaced.

    Raises:
        StorageError: the folder cannot be written.
    """
    hashes, sizes = {}, {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "table.json").unlink(missing_ok=True)
        for source, values in references._values.items():
            path = directory / f"{source}.npy"
            np.save(path, values.astype("<f8").view("<i8"), allow_pickle=False)  # as bits: read_index knows one type
            hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            sizes[source] = len(values)
    except OSError as error:
        raise StorageError(f"{directory} cannot be written: {error}\n  -> free space or mend the storage") from error
    table = _Table(data_fingerprint=data_fingerprint, weights=weights, sources=sizes, files_sha256=hashes)
    write_durably(directory / "table.json", json.dumps(asdict(table), indent=1) + "\n")


def read(directory: Path, *, data_fingerprint: str, weights: str | None) -> References | None:
    """Return what is kept in a folder; None if there is nothing, or it is of other data or other weights.

    Args:
        directory: the folder.
        data_fingerprint: of the prepared data.
        weights: which weights have to be the reference; None where that is certain.

    Raises:
        DataError: a file is damaged.
    """
    if not (directory / "table.json").exists():
        return None
    try:
        table = typed(_Table, read_json(directory / "table.json"))
        if table.data_fingerprint != data_fingerprint or weights not in (None, table.weights):
            return None
        values = {}
        for source, num_records in table.sources.items():
            path = directory / f"{source}.npy"
            if hashlib.sha256(path.read_bytes()).hexdigest() != table.files_sha256[path.name]:
                raise ValueError(f"{path.name} is not as it was written")
            values[source] = np.array(read_index(path, num_records)).view("<f8")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the reference's log-probabilities in {directory} are damaged: {error}\n"
            "  -> remove that folder: they are computed again from the checkpoint the training stage began with"
        ) from error
    return References(values)


def _batch(stream: RecordStream, records: np.ndarray) -> MicroBatch:
    bounds = [stream.starts_of(record) for record in records.tolist()]
    length = max(end - start for start, end in bounds) - 1
    input_ids_BT = torch.zeros((len(bounds), length), dtype=torch.int64)
    labels_BT = torch.full((len(bounds), length), IGNORED_LABEL, dtype=torch.int64)
    for row, (start, end) in enumerate(bounds):
        tokens = torch.from_numpy(stream.tokens(start, end))
        is_target = torch.from_numpy(stream.is_target(start + 1, end))
        input_ids_BT[row, : end - start - 1] = tokens[:-1]
        labels_BT[row, : end - start - 1] = tokens[1:].masked_fill(~is_target, IGNORED_LABEL)
    return MicroBatch(input_ids_BT=input_ids_BT, labels_BT=labels_BT)
