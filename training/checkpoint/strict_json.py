"""JSON objects from a Hugging Face directory: bounded in size and depth, one value per name, no NaN."""

from pathlib import Path
from typing import Any

from training.errors import CorruptCheckpoint
from training.plain_files import parse_json, read_text

_LARGEST_BYTES = 100_000_000
"""Of a tokenizer; a description of a model is far smaller."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds.

    Raises:
        CorruptCheckpoint: it cannot be read, is larger than 100 MB, or is not one JSON object with unique names.
    """
    try:
        values = parse_json(read_text(path, largest_bytes=_LARGEST_BYTES), strict=True)
    except OSError as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CorruptCheckpoint(f"{path} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptCheckpoint(f"{path} holds a {type(values).__name__}, an object is expected")
    return values
