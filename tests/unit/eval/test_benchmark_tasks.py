"""Every benchmark through lm_eval's own evaluator: who knows the answers gets all points, who does not gets none."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.needle_data import LENGTHS_CHARACTERS, SHORT_LENGTHS_CHARACTERS
from eval.benchmarks.registry import task_file
from tests.unit.eval.oracle import OracleLM, WrongLM, answer_of, measure, task_config
from tests.unit.eval.sandbox.available import why_not
from training.config.benchmarks import BENCHMARKS, BenchmarkKind, items_file

PROGRAMS = [name for name, benchmark in BENCHMARKS.items() if benchmark.kind is BenchmarkKind.program]
NAMES = [name for name, benchmark in BENCHMARKS.items() if benchmark.kind is not BenchmarkKind.workflow]
RUN = [name for name in NAMES if name not in PROGRAMS or why_not() is None]
"""Those that can be run here."""
LIMIT = 8

Measured = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def configs(prepared_benchmarks: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All tasks, with their first items."""
    folder = tmp_path_factory.mktemp("extracts")
    found = []
    for name in RUN:
        extract, path = folder / f"{name}.jsonl", task_file(name)
        lines = items_file(prepared_benchmarks, name).read_text().splitlines(keepends=True)
        extract.write_text("".join(lines[:LIMIT]))
        assert path is not None
        found.append(task_config(path, extract, folder / "cache"))
    return found


@pytest.fixture(scope="module")
def oracle(configs: list[dict[str, Any]]) -> Measured:
    answers = {config["task"]: answer_of(config) for config in configs if config["output_type"] == "generate_until"}
    return measure(OracleLM(answers), configs)


@pytest.fixture(scope="module")
def wrong(configs: list[dict[str, Any]]) -> Measured:
    return measure(WrongLM(), configs)


@pytest.mark.parametrize("name", NAMES)
def test_right_and_wrong_answers_are_told_apart(name: str, oracle: Measured, wrong: Measured) -> None:
    if name not in RUN:
        pytest.skip(str(why_not()))
    if BENCHMARKS[name].kind is BenchmarkKind.rolling:
        assert oracle[name] == {"bits_per_byte": 0.0}
        assert wrong[name] == {"bits_per_byte": pytest.approx(2.0)}
    else:
        assert set(oracle[name].values()) == {1.0}
        assert set(wrong[name].values()) == {0.0}
        assert ("pass_at_1" if name == "human_eval" else "acc") in oracle[name]


def test_every_length_of_a_text_has_a_number_of_its_own(oracle: Measured) -> None:
    expected = {"acc", *(f"acc_{length}" for length in LENGTHS_CHARACTERS)}
    assert oracle["needle"].keys() == oracle["multi_needle"].keys() == expected
    assert oracle["short_needle"].keys() == {"acc", *(f"acc_{length}" for length in SHORT_LENGTHS_CHARACTERS)}


def test_a_task_has_the_name_and_the_version_of_its_benchmark(configs: list[dict[str, Any]]) -> None:
    assert {config["task"]: config["metadata"]["version"] for config in configs} == {
        name: BENCHMARKS[name].version for name in NAMES
    }


@pytest.mark.parametrize("name", [name for name in NAMES if BENCHMARKS[name].kind is BenchmarkKind.multiple_choice])
def test_every_question_has_four_choices_and_one_right_one(name: str, prepared_benchmarks: Path) -> None:
    items = [json.loads(line) for line in items_file(prepared_benchmarks, name).read_text().splitlines()]
    assert items
    for item in items:
        assert item["question"].strip()
        assert len(set(item["choices"])) == 4
        assert item["answer"] in range(4)
        assert not [choice for choice in item["choices"] if "\n" in choice or not choice]
