"""Memory-mapped token shards: the writer, and a reader that refuses what is not whole.

<prepared_root>/<key>/tokenizer.json
                      manifest.json                     sizes and hashes of all other files
                      <source>/train.bin                token ids, little-endian; each document ends with eos
                      <source>/train.index.npy          int64 document starts, and the total as last entry
                      <source>/held_out.{bin,index.npy} the same for held-out documents
                      <source>/held_out.ids.json        their ids
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from training.config.schema import DataConfig
from training.data.manifest import Manifest, SplitCounts, directory_of, hash_file
from training.data.tokenizer import Tokenizer
from training.errors import DataError
from training.plain_files import read_json, read_text

_INDEX_HEADER = re.compile(rb"\{'descr': '<i8', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n")
"""What np.save writes before such an array; numpy's own reader parses it as Python."""
PREPARE_COMMAND = "python -m training.data prepare experiment=NAME"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutDocument:
    """One document that is never trained on."""

    id: str
    token_ids: np.ndarray
    """All tokens of its text, without the end-of-text token: they decode to the text exactly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedSource:
    """The training stream of one source."""

    name: str
    train_tokens: np.ndarray
    """Memory-mapped ids of all training documents, one after the other."""
    train_index: np.ndarray
    """int64 start of each document, and the number of tokens as last entry."""


def write_split(folder: Path, split: str, batches: Iterable[list[str]], tokenizer: Tokenizer) -> SplitCounts:
    """Write `<folder>/<split>.bin` and its index, batch by batch, and return what was written."""
    starts, num_bytes = [0], 0
    with (folder / f"{split}.bin").open("wb") as shard:
        for texts in batches:
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
                tokens = np.array([*ids, tokenizer.eos_id])
                assert tokens.max() < tokenizer.vocab_size, "a token id is outside the vocabulary"
                shard.write(tokens.astype(token_dtype(tokenizer.vocab_size)).tobytes())
                starts.append(starts[-1] + len(tokens))
                num_bytes += len(text.encode())
    np.save(folder / f"{split}.index.npy", np.array(starts, dtype="<i8"), allow_pickle=False)
    return SplitCounts(num_documents=len(starts) - 1, num_tokens=starts[-1], num_bytes=num_bytes)


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest unsigned little-endian type that holds every token id."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class PreparedData:
    """A whole prepared folder."""

    def __init__(self, directory: Path, manifest: Manifest, prepare_command: str) -> None:
        self.directory = directory
        self.manifest = manifest
        self._prepare_command = prepare_command
        self.tokenizer = Tokenizer.load(directory / "tokenizer.json")

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
            raise _damaged(directory / "tokenizer.json", "it is not the manifest's tokenizer", prepare_command)
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

    def source(self, name: str) -> PreparedSource:
        """Return the training stream of a source.

        Raises:
            DataError: there is no such source, or its index does not fit its tokens.
        """
        tokens, index = self._split(name, "train")
        return PreparedSource(name=name, train_tokens=tokens, train_index=index)

    def held_out_documents(self, source: str) -> list[HeldOutDocument]:
        """Return the held-out documents of a source, in the source's own order.

        Raises:
            DataError: there is no such source, or its index does not fit its tokens.
        """
        tokens, index = self._split(source, "held_out")
        path = self.directory / source / "held_out.ids.json"
        try:
            ids = read_json(path)
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error), self._prepare_command) from error
        if not (isinstance(ids, list) and all(isinstance(document_id, str) for document_id in ids)):
            raise _damaged(path, "it is no list of names", self._prepare_command)
        if len(ids) != len(index) - 1:
            raise _damaged(
                path, f"it names {len(ids)} documents, the index has {len(index) - 1}", self._prepare_command
            )
        return [
            HeldOutDocument(id=document_id, token_ids=tokens[start : end - 1])
            for document_id, start, end in zip(ids, index[:-1], index[1:], strict=True)
        ]

    def _split(self, source: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (tokens, index) of one split after checking the index against the manifest."""
        if source not in self.manifest.sources:
            raise DataError(
                f"source {source} is not in {self.directory}, which has {sorted(self.manifest.sources)}\n"
                f"  -> name one of these, or add data.sources.{source} and run: {self._prepare_command}"
            )
        counts: SplitCounts = getattr(self.manifest.sources[source], split)
        path = self.directory / source / f"{split}.index.npy"
        try:
            index = _read_index(path, counts.num_documents + 1)
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error), self._prepare_command) from error
        whole = index[0] == 0 and index[-1] == counts.num_tokens
        if not (whole and np.all(np.diff(index) > 0)):
            raise _damaged(path, "its document starts do not fit the manifest", self._prepare_command)
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        if counts.num_tokens == 0:  # an empty file cannot be mapped
            return np.zeros(0, dtype), index
        shard = self.directory / source / f"{split}.bin"
        if not shard.is_file() or shard.stat().st_size != counts.num_tokens * dtype.itemsize:
            raise _damaged(shard, f"it does not hold {counts.num_tokens} tokens", self._prepare_command)
        return np.memmap(shard, dtype=dtype, mode="r", shape=(counts.num_tokens,)), index


def _read_index(path: Path, num_entries: int) -> np.ndarray:
    """Return the int64 numbers of an index file that has exactly so many; np.load would read whatever it finds.

    Raises:
        ValueError: it is another file: of objects, of another shape, a zip.
    """
    with path.open("rb") as file:
        magic, length = file.read(8), file.read(2)
        header = _INDEX_HEADER.fullmatch(file.read(int.from_bytes(length, "little")))
        if magic != b"\x93NUMPY\x01\x00" or header is None:
            raise ValueError("it is no .npy file of one row of int64")
        num_bytes = os.fstat(file.fileno()).st_size - file.tell()
        if int(header[1]) != num_entries or num_bytes != 8 * num_entries:
            raise ValueError(f"it holds {num_bytes} bytes of {int(header[1])} starts, {num_entries} belong there")
        return np.fromfile(file, dtype="<i8", count=num_entries)


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


def _verify_hashes(directory: Path, manifest: Manifest, prepare_command: str) -> None:
    for name, entry in manifest.files.items():
        if hash_file(directory / name) != entry.sha256:
            raise _damaged(directory / name, "its content does not match its hash", prepare_command)


def _damaged(path: Path, reason: str, prepare_command: str) -> DataError:
    return DataError(f"prepared file {path} is damaged: {reason}\n  -> run: {prepare_command}")
