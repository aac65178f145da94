"""Score of answers that are one word or number; named by YAML files."""

from collections.abc import Mapping, Sequence
from typing import Any


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return acc: 1 if the first line of the answer is the right one, but for spaces and full stops around it."""
    line = next(iter(results[0].strip().splitlines()), "")
    return {"acc": float(line.strip(" .") == doc["answer"])}
