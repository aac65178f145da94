"""Real weights (SmolLM2-135M) straight into shards: what transformers computes, every layout computes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed.open_weights_worker import GREEDY_TOKENS, LAYOUTS
from tests.integration.running import run_to_end

PROMPT = "The capital of France is Paris. The capital of Italy is"


@pytest.fixture(scope="module")
def prompt(smollm2: Path) -> list[int]:
    return AutoTokenizer.from_pretrained(smollm2)(PROMPT)["input_ids"]


@pytest.fixture(scope="module")
def found(smollm2: Path, prompt: list[int], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("open_weights")
    (folder / "prompt.json").write_text(json.dumps(prompt))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    worker = ["-m", "tests.distributed.open_weights_worker", smollm2, folder / "prompt.json", folder / "found"]
    finished = run_to_end([*torchrun, *map(str, worker)], folder=folder)
    assert finished.exit_code == 0, finished.explain()
    return load_file(folder / "found")


@pytest.fixture(scope="module")
def expected(smollm2: Path, prompt: list[int]) -> dict[str, Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        logits = model(ids).logits[0]
        greedy = model.generate(ids, max_new_tokens=GREEDY_TOKENS, do_sample=False, eos_token_id=None)
    return {"logits": logits, "tokens": greedy[0, len(prompt) :]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_those_of_transformers(layout: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found[f"{layout}/logits"].abs().max() > 1, "nothing was compared"
    torch.testing.assert_close(found[f"{layout}/logits"], expected["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_text_is_that_of_transformers(
    layout: str, found: dict[str, Tensor], expected: dict[str, Tensor], smollm2: Path
) -> None:
    assert found[f"{layout}/tokens"].tolist() == expected["tokens"].tolist()
    assert "Rome" in AutoTokenizer.from_pretrained(smollm2).decode(expected["tokens"])
