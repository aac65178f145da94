"""What all tests share: marks by folder, time limits, and an environment in which nothing asks the network."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import settings

from tests import real_weights
from training.config.benchmarks import BENCHMARKS, missing

# Before torch, DeepSpeed, Hugging Face libraries or wandb are imported; the processes that tests start inherit it.
os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
}

# A busy machine is slow, not wrong: time limits are pytest's.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

_TIMEOUT_SECONDS = {"distributed": 900, "integration": 900, "browser": 600}
"""Folder = mark -> limit of one test with its fixtures: several starts of several processes on shared cores."""


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in _TIMEOUT_SECONDS:
            item.add_marker(folder)
            item.add_marker(pytest.mark.timeout(_TIMEOUT_SECONDS[folder]))


@pytest.fixture(scope="session")
def prepared_benchmarks() -> Path:
    """Folder of prepared data with every benchmark's items."""
    root = Path(__file__).parents[1] / "prepared"
    if faults := missing(root, BENCHMARKS):
        pytest.fail("`make evaldata` prepares what is missing:\n" + "\n".join(faults))
    return root


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Hugging Face directory of SmolLM2-135M, in fp32, with its tokenizer."""
    if not real_weights.SMOLLM2.is_dir():
        pytest.fail(f"{real_weights.SMOLLM2} is missing; `{real_weights.COMMAND}` makes it")
    return real_weights.SMOLLM2
