import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.evidence import decide_from_reports, read_items
from eval.harness import with_more_items, write_report
from tests.unit.eval.test_harness import DATA, SUITE, lm
from tests.unit.eval.tiny import report_of
from training.config.gate_schema import GateCondition, GateConfig, Metric
from training.errors import DataError

GATE = GateConfig(conditions={"no_worse": GateCondition(metric=Metric.bits_per_byte, compared_with="previous")})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evidence") / "quick.json"
    write_report(report_of(lm(), DATA, SUITE), path)
    return path


def test_metrics_of_items_are_the_metrics_of_the_report(report: Path) -> None:
    items, told = read_items(report), json.loads(report.read_text())["metrics"]
    assert set(items) == set(Metric) - {Metric.assistant_nats_per_token}
    assert {str(metric): items[metric].value for metric in items} == {str(metric): told[metric] for metric in items}
    assert items[Metric.multiple_choice_accuracy].is_share


def test_items_of_a_larger_evaluation_pair_up_with_those_of_a_smaller_one(report: Path, tmp_path: Path) -> None:
    larger = tmp_path / "look-2.json"
    suite = with_more_items(replace(SUITE, held_out_documents=4, prompts=[]), 2)
    assert suite.held_out_documents == 8
    write_report(report_of(lm(), DATA, suite), larger)
    (small,) = decide_from_reports(GATE, report, {"previous": larger}, look=1).findings
    assert small.bounds is not None
    assert (small.bounds.num_items, small.bounds.value) == (8, 0.0)


def test_documents_that_were_cut_otherwise_are_other_items(report: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    write_report(report_of(lm(), DATA, replace(SUITE, document_tokens=10)), other)
    (finding,) = decide_from_reports(GATE, report, {"previous": other}, look=1).findings
    assert finding.bounds is not None
    assert finding.bounds.num_items < 8


@pytest.mark.parametrize("content", [None, "", "[]", '{"tasks": {"held_out": {"version": 1, "items": [{}]}}}'])
def test_what_is_no_report_is_refused_with_words(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "quick.json").write_text(content)
    with pytest.raises(DataError, match=r"quick\.json is no report"):
        read_items(tmp_path / "quick.json")


def test_a_task_in_another_version_gives_no_items(report: Path, tmp_path: Path) -> None:
    content = json.loads(report.read_text())
    content["tasks"]["held_out"]["version"] += 1
    (tmp_path / "quick.json").write_text(json.dumps(content))
    assert set(read_items(tmp_path / "quick.json")) == {Metric.multiple_choice_accuracy}
