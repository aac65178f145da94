"""Preparing data and loading it: both beside Hugging Face's libraries, on texts that are on every machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.loader_contest import LoaderContest, compete_in_loading, loading
from benchmarks.preparation_contest import PreparationContest, compete_in_preparation, preparation
from benchmarks.source_texts import python_texts, write_documents

_BYTES, _QUICK_BYTES = 40_000_000, 4_000_000
"""Of text. Below 32 MiB a preparation starts no worker processes (training/data/workers.py)."""
_BATCHES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class DataContest:
    """Both contests."""

    preparation: PreparationContest
    loading: LoaderContest


def compete_in_data(
    root: Path, tokenizer: Path, *, num_rounds: int, is_quick: bool, say: Callable[[str], None]
) -> DataContest:
    """Return what both measured.

    Args:
        root: a folder for texts and what is made of them.
        tokenizer: directory with SmolLM2's tokenizer.json.
        num_rounds: turns of every contestant.
        is_quick: fewer texts, whose numbers mean little.
        say: is told what is done.
    """
    texts = python_texts(_QUICK_BYTES if is_quick else _BYTES)
    path = root / "texts.jsonl"
    write_documents(path, texts)
    prepared, overrides = compete_in_preparation(texts, path, root, tokenizer=tokenizer, num_rounds=num_rounds, say=say)
    loaded = compete_in_loading(overrides, root, num_rounds=num_rounds, num_batches=_BATCHES, say=say)
    return DataContest(preparation=prepared, loading=loaded)


def data(contest: DataContest) -> list[str]:
    """Return the section of the page."""
    return ["## Data", "", *preparation(contest.preparation), "", *loading(contest.loading)]
