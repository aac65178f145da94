"""The tokenizer beside exported weights: its files, and the special tokens that transformers wants to know."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from training.checkpoint.strict_json import read_json
from training.durable_files import fsync
from training.errors import ConfigError

_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_GENERATION_CONFIG = "generation_config.json"
_OTHERS = (
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
_PREPARED_FOLDER = "tokenizer"
"""Of prepared data."""
_ROLES = ("bos", "eos", "pad")


def copy_tokenizer(source: Path, target: Path, vocab_size: int) -> dict[str, int | None]:
    """Copy a tokenizer, made complete for transformers; returns bos_token_id, eos_token_id and pad_token_id.

    A folder of prepared data keeps it in a folder `tokenizer`; one that was trained on the data has tokenizer.json
    alone, with a special token that ends documents.

    Args:
        source: directory with tokenizer.json.
        target: directory of the exported weights.
        vocab_size: rows of the model's embedding.

    Raises:
        ConfigError: there is none, it needs code of its own, or it has more tokens than the model.
        CorruptCheckpoint: tokenizer_config.json cannot be read.
    """
    if not (source / _TOKENIZER).exists() and (source / _PREPARED_FOLDER / _TOKENIZER).exists():
        source = source / _PREPARED_FOLDER
    path = source / _TOKENIZER
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower for a file it cannot parse
        remedy = "give a directory with one; AutoTokenizer.from_pretrained(…).save_pretrained(…) makes it"
        raise ConfigError("--tokenizer", source, f"has no readable {_TOKENIZER}: {error}", remedy) from error
    largest_id = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest_id >= vocab_size:
        reason = f"has a token with id {largest_id}, the model's embedding has {vocab_size} rows"
        raise ConfigError("--tokenizer", source, reason, "give the tokenizer that the model was trained with")
    config = read_json(source / _TOKENIZER_CONFIG) if (source / _TOKENIZER_CONFIG).exists() else _config_of(tokenizer)
    if config.get("auto_map") is not None:
        reason = f"{_TOKENIZER_CONFIG} names Python code (auto_map)"
        raise ConfigError("--tokenizer", source, reason, "give one that transformers has built in")
    for name in (_TOKENIZER, *_OTHERS):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
            fsync(target / name)
    write_json(target / _TOKENIZER_CONFIG, config)
    ids = {f"{role}_token_id": _id_of(tokenizer, config.get(f"{role}_token")) for role in _ROLES}
    if (source / _GENERATION_CONFIG).exists():
        write_json(target / _GENERATION_CONFIG, read_json(source / _GENERATION_CONFIG))
    elif ids["eos_token_id"] is not None:
        write_json(target / _GENERATION_CONFIG, {name: number for name, number in ids.items() if number is not None})
    return ids


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file and wait until it is on disk."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    fsync(path)


def _config_of(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    return config | ({"eos_token": special[0]} if len(special) == 1 else {})


def _id_of(tokenizer: tokenizers.Tokenizer, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, Mapping) else token  # older files describe a token by an object
    return tokenizer.token_to_id(text) if isinstance(text, str) else None
