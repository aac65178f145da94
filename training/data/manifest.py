"""What a prepared folder holds, and the settings that give the folder its name."""

import hashlib
import json
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from training.config.data_schema import DataConfig, SourceConfig, SourceForm, SourceKind
from training.data.corpus import KJV_FILE, source_files
from training.errors import ConfigError
from training.plain_files import parse_json, typed

FORMAT_VERSION = 2
"""Raised when the same settings would give other files."""

_SOURCE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_FILE = re.compile(rf"({_SOURCE_NAME.pattern}/)?[a-z_]+(-\d{{5,7}})?(\.[a-z]+){{1,3}}")


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
    """`determining_settings` of the config it was prepared from."""
    dtype: str
    """uint16 or uint32, little-endian: the smallest that holds the vocabulary."""
    vocab_size: int
    tokenizer_fingerprint: str
    sources: dict[str, SourceEntry]
    files: dict[str, FileEntry]
    """Every other file of the folder, by relative path."""

    @property
    def fingerprint(self) -> str:
        """Hash of all content, whatever it was prepared from: the data's identity in a checkpoint."""
        return _hash_json({path: entry.sha256 for path, entry in self.files.items()})

    def to_json(self) -> str:
        """Return the file's text: the manifest and its own hash, so that no byte of it can change unseen."""
        body = asdict(self)
        return json.dumps({"sha256": _hash_json(body), "manifest": body}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the manifest of a file's text.

        Raises:
            ValueError: it is no manifest, or not as it was written.
        """
        try:
            content = parse_json(text)
            body = content["manifest"]
            if _hash_json(body) != content["sha256"]:
                raise ValueError("its content does not match its hash")
            sources = {name: _source_entry(entry) for name, entry in body.pop("sources").items()}
            files = {path: typed(FileEntry, entry) for path, entry in body.pop("files").items()}
            if strange := [path for path in files if not _FILE.fullmatch(path)]:
                raise ValueError(f"{strange[0]!r} is not the name of a prepared file")  # a path could lead anywhere
            if strange := [name for name in sources if not _SOURCE_NAME.fullmatch(name)]:
                raise ValueError(f"{strange[0]!r} is not the name of a source")
            if body["dtype"] not in ("uint16", "uint32"):
                raise ValueError(f"dtype {body['dtype']!r}")
            return typed(cls, {"sources": sources, "files": files, **body})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no manifest: {error!r}") from error


def determining_settings(data: DataConfig) -> dict[str, Any]:
    """Return everything the content of the prepared data follows from, as JSON: settings, and the state of the inputs.

    Raises:
        ConfigError: a text_files source matches no file, or a source's name cannot be a folder's.
    """
    for name in data.sources:
        if not _SOURCE_NAME.fullmatch(name):
            raise ConfigError(
                "data.sources",
                name,
                "a source's name is also a folder's",
                "use letters, digits, '_' and '-', at most 64",
            )
    return {
        "format_version": FORMAT_VERSION,
        "sources": {
            # Not the path: ids count from the source's own folder, so a moved folder gives the same documents.
            name: {"kind": s.kind, "max_documents": s.max_documents, "input": _input_state(name, s)}
            for name, s in data.sources.items()
        },
        "tokenizer_vocab_size": data.tokenizer_vocab_size,
        "held_out_fraction": data.held_out_fraction,
    }


def directory_of(data: DataConfig) -> Path:
    """Return the folder of the prepared data of a config, whether it exists or not."""
    return Path(data.prepared_root) / _hash_json(determining_settings(data))[:16]


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _input_state(name: str, source: SourceConfig) -> str:
    """Return what tells one state of a source's input from another, without reading all of it."""
    match source.kind:
        case SourceKind.kjv:
            return hash_file(KJV_FILE)
        case SourceKind.python_stdlib:
            return f"Python {platform.python_version()}"
        case _:
            stats = [(document_id, path.stat()) for document_id, path in source_files(name, source)]
            return _hash_json([[document_id, s.st_size, s.st_mtime_ns] for document_id, s in stats])


def _source_entry(entry: dict[str, Any]) -> SourceEntry:
    splits = {
        split: SplitEntry(shards=[typed(ShardCounts, shard) for shard in entry[split]["shards"]])
        for split in ("train", "held_out")
    }
    return typed(SourceEntry, {**entry, **splits, "form": SourceForm(entry["form"])})


def _hash_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
