"""lm_eval on a live engine: item by item what its own HFLM gives for the same weights, in every layout and batch."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from tests.distributed.live_model_tasks import MAX_LENGTH, PROMPTS, QUESTIONS, TEXTS, run_tasks, write_tasks
from tests.integration.running import run_to_end

LAUNCHES = {2: ["pipeline:1", "zero3:2"], 4: ["pipeline_zero3:8"]}
"""Processes -> layout:batch. Two pipelines beside each other, or two replicas, run out of work at different times."""
CELLS = [cell for cells in LAUNCHES.values() for cell in cells]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder


@pytest.fixture(scope="module")
def found(smollm2: Path, tasks: Path) -> dict[str, Any]:
    found = {}
    for num_processes, cells in LAUNCHES.items():
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
        worker = ["-m", "tests.distributed.live_model_worker", smollm2, tasks, tasks / "found.json", *cells]
        finished = run_to_end([*torchrun, *map(str, worker)], folder=tasks)
        assert finished.exit_code == 0, finished.explain()
        found |= json.loads((tasks / "found.json").read_text())
    return found


@pytest.fixture(scope="module")
def expected(smollm2: Path, tasks: Path) -> dict[str, Any]:
    """Of lm_eval's HFLM. torch's float32 log_softmax is off by 7e-6 a token on CPU, hence its softmax in float64."""
    hflm: Any = HFLM  # its register decorator hides its parameters
    model = hflm(
        pretrained=str(smollm2),
        dtype="float32",
        device="cpu",
        batch_size=1,
        max_length=MAX_LENGTH,
        prefix_token_id=AutoTokenizer.from_pretrained(smollm2).eos_token_id,
        softmax_dtype="float64",
    )
    return json.loads(json.dumps(run_tasks(model, tasks)))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cell", CELLS)
def test_log_likelihoods_of_choices_are_those_of_hflm(
    cell: str, found: dict[str, Any], expected: dict[str, Any]
) -> None:
    for ours, theirs in zip(found[cell]["choice"], expected["choice"], strict=True):
        for [(ours_logprob, ours_greedy)], [(logprob, greedy)] in zip(ours, theirs, strict=True):
            assert ours_logprob == pytest.approx(logprob, abs=1e-4)
            assert ours_greedy == greedy
    assert len(expected["choice"]) == len(QUESTIONS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cell", CELLS)
def test_rolling_log_likelihoods_are_those_of_hflm(cell: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    flat = [logprob for [[logprob]] in expected["rolling"]]
    assert [logprob for [[logprob]] in found[cell]["rolling"]] == pytest.approx(flat, abs=1e-4)
    assert len(flat) == len(TEXTS)
    assert min(flat) < -100, "the long text takes several windows"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("task", ["lines", "words"])
def test_generations_are_those_of_hflm(cell: str, task: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found[cell][task] == expected[task]
    assert len({str(text) for text in expected[task]}) == len(PROMPTS)
