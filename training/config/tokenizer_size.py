"""How many tokens a run's tokenizer has, before anything is prepared. Reads JSON; no tokenizer is loaded."""

from pathlib import Path
from typing import Any

from training.config.data_schema import DataConfig
from training.plain_files import read_json

_LARGEST_BYTES = 100_000_000


def tokenizer_vocab_size(data: DataConfig) -> int | None:
    """Return the rows that an embedding needs for the tokenizer's ids; None if its directory cannot be read here.

    A plan or a check may be made where the tokenizer is not; preparing the data, and opening it, need it.
    """
    if data.tokenizer is None:
        return data.tokenizer_vocab_size
    try:
        description = read_json(Path(data.tokenizer) / "tokenizer.json", largest_bytes=_LARGEST_BYTES)
        return _largest_id(description) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _largest_id(description: dict[str, Any]) -> int:
    vocabulary = description["model"]["vocab"]  # a unigram model's is a list of pieces, others' give each its id
    ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
    added = [token["id"] for token in description.get("added_tokens") or []]
    return max(int(token_id) for token_id in (*ids, *added))
