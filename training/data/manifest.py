"""What a prepared folder holds."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from training.config.data_schema import SourceForm
from training.plain_files import parse_json, typed

SOURCE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_FILE = re.compile(rf"({SOURCE_NAME.pattern}/)?[a-z_]+(-\d{{5,7}})?(\.[a-z]+){{1,3}}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """Size and hash of one file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCounts:
    """Size of one shard."""

    num_records: int
    """Of preferences, two for each pair."""
    num_tokens: int
    """With one end-of-document token per document."""
    num_targets: int
    """Tokens that are to be learned."""
    num_bytes: int
    """UTF-8 bytes of the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitEntry:
    """The training or the held-out part of a source."""

    shards: list[ShardCounts]
    """In order."""

    @property
    def num_records(self) -> int:
        """Records of all shards."""
        return sum(shard.num_records for shard in self.shards)

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text of all shards."""
        return sum(shard.num_bytes for shard in self.shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceEntry:
    """One source."""

    form: SourceForm
    licence: str
    tags: list[str]
    train: SplitEntry
    held_out: SplitEntry
    quarantined: dict[str, int]
    """Records that could not be used, by reason; `<source>/quarantine.jsonl` names each of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Content of a prepared folder. Written last, inside the folder, before the rename that commits it."""

    settings: dict[str, Any]
    """What all of it follows from; see `determining_settings`."""
    dtype: str
    """uint16 or uint32, little-endian: the smallest that holds the vocabulary."""
    vocab_size: int
    tokenizer_fingerprint: str
    """sha256 of tokenizer/tokenizer.json."""
    end_of_document_token: str
    sources: dict[str, SourceEntry]
    files: dict[str, FileEntry]
    """Every other file of the folder, by relative path."""

    @property
    def fingerprint(self) -> str:
        """Hash of all content, whatever it was prepared from: the data's identity in a checkpoint."""
        return hash_json({path: entry.sha256 for path, entry in self.files.items()})

    def to_json(self) -> str:
        """Return the file's text: the manifest and its own hash, so that no byte of it can change unseen."""
        body = asdict(self)
        return json.dumps({"sha256": hash_json(body), "manifest": body}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the manifest of a file's text.

        Raises:
            ValueError: it is no manifest, or not as it was written.
        """
        try:
            content = parse_json(text)
            body = content["manifest"]
            if hash_json(body) != content["sha256"]:
                raise ValueError("its content does not match its hash")
            sources = {name: _source_entry(entry) for name, entry in body.pop("sources").items()}
            files = {path: typed(FileEntry, entry) for path, entry in body.pop("files").items()}
            if strange := [path for path in files if not _FILE.fullmatch(path)]:
                raise ValueError(f"{strange[0]!r} is not the name of a prepared file")  # a path could lead anywhere
            if strange := [name for name in sources if not SOURCE_NAME.fullmatch(name)]:
                raise ValueError(f"{strange[0]!r} is not the name of a source")
            if body["dtype"] not in ("uint16", "uint32"):
                raise ValueError(f"dtype {body['dtype']!r}")
            return typed(cls, {"sources": sources, "files": files, **body})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no manifest: {error!r}") from error


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source_entry(entry: dict[str, Any]) -> SourceEntry:
    splits = {
        split: SplitEntry(shards=[typed(ShardCounts, shard) for shard in entry[split]["shards"]])
        for split in ("train", "held_out")
    }
    return typed(SourceEntry, {**entry, **splits, "form": SourceForm(entry["form"])})


def hash_json(value: object) -> str:
    """Return the sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
