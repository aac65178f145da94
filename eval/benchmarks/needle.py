"""Score of numbers hidden in long texts; named by YAML files."""

import re
from collections.abc import Mapping, Sequence
from typing import Any


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return acc, and acc_<length> of the item's length: 1 if every number stands in the answer, otherwise 0.

    A number counts as a whole: not as a part of a longer one, nor with separators.
    """
    right = float(set(doc["answers"]) <= set(re.findall(r"\d+", results[0])))
    return {"acc": right, f"acc_{doc['length']}": right}
