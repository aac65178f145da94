"""What of a benchmark's items is looked for in training data."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.config.benchmarks import items_file
from training.plain_files import parse_json, read_text

_FIRST_FIELDS = ("text", "prompt", "turns", "question")
"""What tells a benchmark's item from others: the first of these that it has."""
_OTHER_FIELDS = ("choices", "canonical_solution")

Passages = Mapping[str, Sequence[str]]
"""Item, by its id in a report -> its passages; see `text_overlap.OverlapSearch`."""


def benchmark_passages(root: Path, name: str) -> dict[str, list[str]]:
    """Return the passages of a prepared benchmark's items.

    Raises:
        OSError: it is not prepared.
        ValueError: its items cannot be read.
    """
    items = [parse_json(line) for line in read_text(items_file(root, name)).splitlines()]
    return {str(item.get("id", place)): _passages(item) for place, item in enumerate(items)}


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a field: one, a list of choices, or turns of several messages."""
    if isinstance(value, list):
        for child in value:
            yield from _texts(child)
    else:
        yield str(value)


def _passages(item: Mapping[str, Any]) -> list[str]:
    first = next(item[name] for name in _FIRST_FIELDS if name in item)
    return [*_texts(first), *(text for name in _OTHER_FIELDS if name in item for text in _texts(item[name]))]
