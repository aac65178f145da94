import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.harness import TaskReport, write_report
from eval.lm import EngineLM
from tests.unit.eval.tiny import TinyEngine, make_data, make_lm, make_model, report_of
from training.config.eval_schema import SuiteConfig
from training.errors import StorageError

DATA = make_data()
SUITE = SuiteConfig(
    held_out_source="prose",
    held_out_documents=8,
    document_tokens=40,
    multiple_choice_items=6,
    prompts=["The wind", "naïve"],
    sample_tokens=4,
    batch_sequences=3,
)


def lm(seed: int = 0) -> EngineLM:
    return make_lm(TinyEngine(make_model(DATA.tokenizer.vocab_size, seed)), DATA, SUITE.batch_sequences)


def test_a_suite_gives_all_numbers_items_and_samples_and_the_same_ones_every_time() -> None:
    report = report_of(lm(), DATA, SUITE)
    assert report.bits_per_byte == report.metrics["bits_per_byte"] > 0
    assert 0 <= report.metrics["multiple_choice_accuracy"] <= 1
    assert {name: len(task.items) for name, task in report.tasks.items()} == {
        "held_out": 8,
        "multiple_choice": 6,
        "samples": 2,
    }
    assert [sample["prompt"] for sample in report.samples] == SUITE.prompts
    again = report_of(lm(), DATA, SUITE)
    assert replace(again, seconds=report.seconds) == report
    assert report_of(lm(seed=1), DATA, SUITE).bits_per_byte != report.bits_per_byte


def test_tasks_that_a_suite_does_not_ask_for_are_left_out() -> None:
    report = report_of(lm(), DATA, replace(SUITE, multiple_choice_items=0, prompts=[]))
    assert list(report.tasks) == ["held_out"]
    assert report.samples == []


def test_evaluation_consumes_no_randomness_and_builds_no_gradient() -> None:
    model = make_model(DATA.tokenizer.vocab_size)
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    report_of(make_lm(TinyEngine(model), DATA), DATA, SUITE)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state()) == str(numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_report_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    report = report_of(lm(), DATA, SUITE)
    path = tmp_path / "eval" / "pretrain" / "quick.json"
    write_report(report, path)
    assert json.loads(path.read_text(encoding="utf-8")) == asdict(report)
    assert [entry.name for entry in path.parent.iterdir()] == ["quick.json"]


def test_half_a_character_in_an_answer_costs_no_report(tmp_path: Path) -> None:
    report = report_of(lm(), DATA, replace(SUITE, prompts=[]))
    items = [{"id": "naïve", "answer": "\ud83d \\ud83d \\ \N{SHEEP}"}]
    report = replace(report, tasks={"regex_match": TaskReport(version=1, items=items)})
    write_report(report, tmp_path / "quick.json")
    assert json.loads((tmp_path / "quick.json").read_text(encoding="utf-8")) == asdict(report)


def test_a_report_that_cannot_be_written_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "eval").write_text("a file where a folder should be")
    report = report_of(lm(), DATA, replace(SUITE, prompts=[]))
    with pytest.raises(StorageError, match=r"quick\.json"):
        write_report(report, tmp_path / "eval" / "quick.json")
