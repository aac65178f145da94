"""Record streams of chosen records, through the real files."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.config.data_schema import SourceForm
from training.data.shard_files import DamagedFile, EncodedRecord, Shard, shard_name, token_dtype, write_shard
from training.data.stream import RecordStream
from training.errors import DataError

VOCAB_SIZE = 1000
EOS_ID = 0


def make_stream(
    lengths: Sequence[int], form: SourceForm = SourceForm.documents, *, num_shards: int = 2, folder: Path | None = None
) -> RecordStream:
    """Return a stream of records of so many tokens each, dealt to shards in order.

    A document's last token is EOS_ID, all others are not; of other forms every second token is a target.
    """
    folder = folder or Path(tempfile.mkdtemp())
    has_targets = form is not SourceForm.documents
    shards = []
    for number, part in enumerate(np.array_split(np.arange(len(lengths)), num_shards)):
        records = []
        for record in part.tolist():
            tokens = 1 + (np.arange(lengths[record]) + 7 * record) % (VOCAB_SIZE - 1)
            if form is SourceForm.documents:
                tokens[-1] = EOS_ID
            is_target = np.arange(lengths[record]) % 2 == 1 if has_targets else None
            name = f"record {record // 2 if form is SourceForm.preferences else record}"
            records.append(EncodedRecord(id=name, token_ids=tokens, is_target=is_target, num_bytes=1))
        name = shard_name("train", number)
        counts = write_shard(folder, name, records, vocab_size=VOCAB_SIZE, has_targets=has_targets)
        shards.append(Shard(folder, name, counts, token_dtype(VOCAB_SIZE), has_targets=has_targets))
    return RecordStream("texts", form, shards, _damaged)


def _damaged(error: DamagedFile) -> DataError:
    return DataError(f"{error.path}: {error}")
