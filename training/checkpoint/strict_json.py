"""JSON from files that others wrote: bounded in size, one value per name, numbers that are numbers."""

import json
from pathlib import Path
from typing import Any

from training.errors import CorruptCheckpoint

_LARGEST_BYTES = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds.

    Raises:
        CorruptCheckpoint: it cannot be read, is larger than 100 MB, or is not one JSON object with unique names.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST_BYTES:
        raise CorruptCheckpoint(f"{path} is larger than {_LARGEST_BYTES:,} bytes; that is no description of a model")
    return parse_json(data, str(path))


def parse_json(data: bytes | bytearray, where: str) -> dict[str, Any]:
    """Return the object in a text; `where` names the text in the error.

    Raises:
        CorruptCheckpoint: it is not one JSON object with unique names.
    """
    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{where} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptCheckpoint(f"{where} holds a {type(values).__name__}, an object is expected")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return values


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")
