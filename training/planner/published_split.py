"""Which published rows calibrate, which are left out, and which cannot be used: chosen before anything was fitted.

The reasons stand in `published/README.md`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

CONTRADICTION = 0.05
"""Relative difference of two published times of the same inputs above which neither is used."""
FAULT_SHARE_OF_PEAK = 0.02
"""Model FLOPs over peak below which a run of the sweep is taken for a fault."""
_LEFT_OUT_SOURCES = (
    "BigScience",
    "Narayanan",
    "NVIDIA Megatron-Bridge performance summary",
    "Megatron-LM examples",
    "torchtitan benchmarks async TP",
    "torchtitan benchmarks H200",
)
_LARGEST_GPUS = {"MosaicML": 127, "HuggingFace nanotron": 255, "NVIDIA dgxc": 128, "torchtitan": 127}
"""Of sources that are used: rows with more GPUs are left out."""
_LARGEST_HIDDEN = {"MosaicML": 8191, "HuggingFace nanotron": 8191}
"""Of sources that are used: rows of wider models are left out."""


class Use(StrEnum):
    """What a row is used for."""

    calibration = "calibration"
    left_out = "left out"


def use_of(row: Mapping[str, Any]) -> Use:
    """Return what a row's step time is used for; a source that is not among the known ones is left out."""
    source = str(row["source"])
    if source.startswith(_LEFT_OUT_SOURCES):
        return Use.left_out
    for start, most in _LARGEST_GPUS.items():
        if source.startswith(start):
            large = int(row["num_gpus"]) > most or int(row["hidden"]) > _LARGEST_HIDDEN.get(start, 10**9)
            return Use.left_out if large else Use.calibration
    return Use.calibration if source.startswith("Megatron-Bridge perf skills") else Use.left_out
