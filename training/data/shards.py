"""Prepared data: a reader that refuses what is not whole.

<prepared_root>/<key>/manifest.json                     what is in it; sizes and hashes of all other files
                      tokenizer/                        tokenizer.json, and the directory's other files that matter
                      near_duplicates.jsonl, contamination.jsonl   reports, where something was found
                      <source>/train-00000.*            shards, see shard_files.py
                      <source>/held_out-00000.*         the same for records that are never trained on
                      <source>/quarantine.jsonl         records that could not be used, and why
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from training.config.data_schema import DataConfig, SourceForm
from training.data.manifest import Manifest, SplitEntry, hash_file
from training.data.settings import TOKENIZER_FOLDER, directory_of
from training.data.shard_files import DamagedFile, Shard, shard_name
from training.data.stream import RecordStream
from training.data.tokenizer import Tokenizer
from training.errors import ConfigError, DataError
from training.plain_files import read_text

PREPARE_COMMAND = "python -m training.data prepare experiment=NAME"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutDocument:
    """One record that is never trained on."""

    id: str
    token_ids: np.ndarray
    """int64; of a document all tokens of its text, without the end-of-text token: they decode to the text exactly. Of a
    conversation or an answer of a pair all of its tokens."""
    is_target: np.ndarray
    """bool; which tokens are learned from in training."""


class PreparedData:
    """A whole prepared folder."""

    def __init__(self, directory: Path, manifest: Manifest, prepare_command: str) -> None:
        self.directory = directory
        self.manifest = manifest
        self._prepare_command = prepare_command
        self.tokenizer = _load_tokenizer(directory, manifest, prepare_command)

    @classmethod
    def open(cls, data: DataConfig, *, verify: bool = False, prepare_command: str = PREPARE_COMMAND) -> Self:
        """Return the prepared data of a config after checking that every file is there with its size.

        Args:
            data: the config it was prepared from.
            verify: also compare the hash of every file, which reads all of them.
            prepare_command: what a message tells the user to run.

        Raises:
            DataError: there is none, or a file is missing, changed or damaged.
        """
        directory = directory_of(data)
        manifest = _read_manifest(directory, prepare_command)
        for name, entry in manifest.files.items():
            path = directory / name
            if not path.is_file():
                raise _damaged(path, "it is missing", prepare_command)
            if path.stat().st_size != entry.num_bytes:
                reason = f"it has {path.stat().st_size} bytes, the manifest says {entry.num_bytes}"
                raise _damaged(path, reason, prepare_command)
        if verify:
            _verify_hashes(directory, manifest, prepare_command)
        prepared = cls(directory, manifest, prepare_command)
        if prepared.tokenizer.fingerprint != manifest.tokenizer_fingerprint:
            path = directory / TOKENIZER_FOLDER / "tokenizer.json"
            raise _damaged(path, "it is not the manifest's tokenizer", prepare_command)
        return prepared

    @property
    def fingerprint(self) -> str:
        """Hash of all content: equal for the same tokens and tokenizer, wherever and whenever they were prepared."""
        return self.manifest.fingerprint

    def verify(self) -> None:
        """Compare the hash of every file with the manifest.

        Raises:
            DataError: a file is not as it was written.
        """
        _verify_hashes(self.directory, self.manifest, self._prepare_command)

    def train(self, source: str) -> RecordStream:
        """Return the training records of a source.

        Raises:
            DataError: there is no such source.
        """
        return self._stream(source, "train")

    def held_out(self, source: str) -> RecordStream:
        """Return the records of a source that are never trained on.

        Raises:
            DataError: there is no such source.
        """
        return self._stream(source, "held_out")

    def held_out_documents(self, source: str) -> list[HeldOutDocument]:
        """Return the held-out records of a source, in the source's own order.

        Raises:
            DataError: there is no such source, or a file is damaged.
        """
        stream = self.held_out(source)
        places = stream.starts(np.arange(stream.num_records + 1))
        end_tokens = int(stream.form is SourceForm.documents)
        return [
            HeldOutDocument(
                id=stream.id_of(record),
                token_ids=stream.tokens(start, end - end_tokens),
                is_target=stream.is_target(start, end - end_tokens),
            )
            for record, (start, end) in enumerate(zip(places[:-1].tolist(), places[1:].tolist(), strict=True))
        ]

    def _stream(self, name: str, split: str) -> RecordStream:
        if name not in self.manifest.sources:
            raise DataError(
                f"source {name} is not in {self.directory}, which has {sorted(self.manifest.sources)}\n"
                f"  -> name one of these, or add data.sources.{name} and run: {self._prepare_command}"
            )
        source = self.manifest.sources[name]
        entry: SplitEntry = getattr(source, split)
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        has_targets = source.form is not SourceForm.documents
        shards = [
            Shard(self.directory / name, shard_name(split, number), counts, dtype, has_targets=has_targets)
            for number, counts in enumerate(entry.shards)
        ]
        return RecordStream(name, source.form, shards, self._damaged_file)

    def _damaged_file(self, error: DamagedFile) -> DataError:
        return _damaged(error.path, str(error), self._prepare_command)


def _read_manifest(directory: Path, prepare_command: str) -> Manifest:
    path = directory / "manifest.json"
    try:
        return Manifest.from_json(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"no prepared data at {directory}: nothing was prepared for this data section and these inputs\n"
            f"  -> run: {prepare_command}"
        ) from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _damaged(path, str(error), prepare_command) from error


def _load_tokenizer(directory: Path, manifest: Manifest, prepare_command: str) -> Tokenizer:
    try:
        return Tokenizer.load(directory / TOKENIZER_FOLDER, manifest.end_of_document_token)
    except ConfigError as error:
        raise _damaged(directory / TOKENIZER_FOLDER, str(error), prepare_command) from error


def _verify_hashes(directory: Path, manifest: Manifest, prepare_command: str) -> None:
    for name, entry in manifest.files.items():
        if hash_file(directory / name) != entry.sha256:
            raise _damaged(directory / name, "its content does not match its hash", prepare_command)


def _damaged(path: Path, reason: str, prepare_command: str) -> DataError:
    return DataError(f"prepared file {path} is damaged: {reason}\n  -> run: {prepare_command}")
