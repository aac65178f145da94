"""Which items of a benchmark are kept out of training data that is made from the others. No torch, no lm_eval.

The rule is that of prepared data (`training.data.corpus.is_held_out`), on what an item is about and not on its name: of
the leaderboard's sets, some ask the same question, and each workflow is there in four categories.
"""

import re
from collections.abc import Mapping
from typing import Any

from training.data.corpus import is_held_out

_CATEGORY = re.compile(r"multi_turn_[a-z_]+_(\d+)")


def is_held_out_item(item: Mapping[str, Any], fraction: float) -> bool:
    """Return whether an item is kept out of training: a pure function of its question (a workflow's: of its number)."""
    return is_held_out(f"benchmark/{_subject(item)}", fraction)


def _subject(item: Mapping[str, Any]) -> str:
    if workflow := _CATEGORY.fullmatch(str(item["id"])):
        return f"multi_turn_{workflow[1]}"
    question = str(item.get("question", item["id"]))
    return " ".join(re.findall(r"\w+", question.lower()))
