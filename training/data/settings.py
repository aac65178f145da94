"""The settings and the state of the inputs that prepared data follows from, which give its folder its name."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.config.benchmarks import benchmark_directory, missing, read_manifest
from training.config.data_schema import DataConfig, SourceConfig, SourceForm, SourceKind
from training.data.manifest import SOURCE_NAME, hash_file, hash_json
from training.data.readers.embedded import KJV_FILE
from training.data.readers.places import source_files
from training.data.tokenizer import TOKENIZER_FILES
from training.errors import ConfigError, DataError

FORMAT_VERSION = 3
"""Raised when the same settings would give other files."""
TOKENIZER_FOLDER = "tokenizer"
"""Of a prepared folder; no source can have this name."""


def determining_settings(data: DataConfig) -> dict[str, Any]:
    """Return everything the content of the prepared data follows from, as JSON: settings, and the state of the inputs.

    Raises:
        ConfigError: a source matches no file or has a name that cannot be a folder's, or the tokenizer is not there.
        DataError: a benchmark that is looked for is not prepared.
    """
    for name in data.sources:
        if not SOURCE_NAME.fullmatch(name) or name == TOKENIZER_FOLDER:
            raise ConfigError(
                "data.sources",
                name,
                "a source's name is also a folder's",
                f"use letters, digits, '_' and '-', at most 64, and not {TOKENIZER_FOLDER}",
            )
    return {
        "format_version": FORMAT_VERSION,
        "sources": {name: _source_settings(data, name, source) for name, source in data.sources.items()},
        "tokenizer": _tokenizer_settings(data),
        "end_of_document_token": data.end_of_document_token,
        "near_duplicates": data.near_duplicates and asdict(data.near_duplicates),
        "contamination": _contamination_settings(data),
        "shard_bytes": data.shard_bytes,
    }


def directory_of(data: DataConfig) -> Path:
    """Return the folder of the prepared data of a config, whether it exists or not.

    Raises:
        ConfigError: see `determining_settings`.
        DataError: see there.
    """
    return Path(data.prepared_root) / hash_json(determining_settings(data))[:16]


def has_chat(data: DataConfig) -> bool:
    """Return whether a source has conversations or preferences."""
    return any(source.form is not SourceForm.documents for source in data.sources.values())


def _source_settings(data: DataConfig, name: str, source: SourceConfig) -> dict[str, Any]:
    settings = {
        "kind": source.kind,
        "form": source.form,
        "max_documents": source.max_documents,
        "max_record_bytes": source.max_record_bytes,
        "held_out_fraction": data.held_out_fraction_of(name),
        "licence": source.licence,
        "tags": source.tags,
        # Not the path: places count from the source's own folder, so a moved folder gives the same records.
        "input": _input_state(name, source),
    }
    if source.kind.has_fields:
        settings["id_field"] = source.id_field
        settings["text_field"] = source.text_field if source.form is SourceForm.documents else None
    return settings


def _input_state(name: str, source: SourceConfig) -> object:
    """Return what tells one state of a source's input from another, without reading all of it."""
    match source.kind:
        case SourceKind.kjv:
            return hash_file(KJV_FILE)
        case SourceKind.python_stdlib:
            return f"Python {platform.python_version()}"
        case SourceKind.hub:
            return {"name": source.path, **asdict(source.hub)}
        case _:
            stats = [(place, path.stat()) for place, path in source_files(name, source)]
            return hash_json([[place, s.st_size, s.st_mtime_ns] for place, s in stats])


def _tokenizer_settings(data: DataConfig) -> dict[str, Any]:
    if data.tokenizer is None:
        return {"byte_level_bpe": data.tokenizer_vocab_size}
    directory = Path(data.tokenizer)
    if not (directory / TOKENIZER_FILES[0]).is_file():
        raise ConfigError(
            "data.tokenizer",
            data.tokenizer,
            f"there is no {TOKENIZER_FILES[0]}",
            "name a Hugging Face directory that has one, or data.tokenizer=null for one trained on the sources",
        )
    return {name: hash_file(directory / name) for name in TOKENIZER_FILES if (directory / name).is_file()}


def _contamination_settings(data: DataConfig) -> dict[str, Any] | None:
    if data.contamination is None:
        return None
    root = Path(data.prepared_root)
    if faults := missing(root, data.contamination.benchmarks):
        raise DataError("data.contamination: " + "\n  -> ".join(faults))
    benchmarks = {
        name: read_manifest(benchmark_directory(root, name)).files_sha256 for name in data.contamination.benchmarks
    }
    return {"action": data.contamination.action, "benchmarks": {name: hash_json(h) for name, h in benchmarks.items()}}
