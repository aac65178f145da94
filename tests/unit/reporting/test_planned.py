"""plan.json beside what was measured: only what can be compared is, and damage is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.reporting.example_run import LAYOUT, write_example_run
from tests.unit.reporting.page import Page
from training.reporting.planned import FILE_NAME, PlannedStage, compare, read_plan, write_plan
from training.reporting.records import StageRecord, StepRecord
from training.reporting.report.page import write_report
from training.reporting.summary import read_run

PLANNED = PlannedStage(layout=LAYOUT, step_seconds=2.0, tokens_per_second=1000.0, mfu=0.4, memory_bytes=50e9)


def step(number: int, *, seconds: float, attempt: int = 0) -> StepRecord:
    return StepRecord(
        step=number,
        stage="pretrain",
        loss=1.0,
        grad_norm=1.0,
        lr=1e-3,
        tokens=2000 * number,
        tokens_per_second=2000 / seconds,
        mfu=0.8 / seconds,
        batch_id="0" * 16,
        attempt=attempt,
        seconds=seconds,
    )


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    notes: list[str] = []
    write_plan(tmp_path, {"pretrain": PLANNED})
    assert read_plan(tmp_path, notes) == {"pretrain": PLANNED}
    assert not notes


def test_medians_are_compared_without_each_attempts_first_step() -> None:
    steps = [step(1, seconds=90.0), *(step(n, seconds=4.0) for n in (2, 3)), step(4, seconds=80.0, attempt=1)]
    steps += [step(n, seconds=4.0, attempt=1) for n in (5, 6)]
    begin = StageRecord(step=0, stage="pretrain", event="begin", layout=LAYOUT, attempt=0)
    end = replace(begin, event="end", peak_memory_bytes=45e9)
    comparisons, why_not = compare(PLANNED, steps, [begin, end])
    assert not why_not
    assert {c.what: (c.planned, c.measured) for c in comparisons} == {
        "step": (2.0, 4.0),
        "tokens per second": (1000.0, 500.0),
        "MFU": (0.4, 0.2),
        "memory of rank 0": (50e9, 45e9),
    }
    assert comparisons[0].ratio == 2.0
    assert "memory of rank 0" not in {c.what for c in compare(PLANNED, steps, [begin])[0]}


def test_what_was_planned_for_another_layout_is_not_compared() -> None:
    begin = StageRecord(step=0, stage="pretrain", event="begin", layout="another", attempt=0)
    assert compare(PLANNED, [step(1, seconds=1.0), step(2, seconds=1.0)], [begin]) == (
        [],
        f"planned for another layout ({LAYOUT})",
    )
    assert compare(PLANNED, [step(1, seconds=1.0)], []) == ([], "too few steps to measure")


def test_the_report_shows_the_comparison(tmp_path: Path) -> None:
    run_directory = write_example_run(tmp_path / "demo")
    assert "Plan versus measured" not in Page(write_report(run_directory)).text
    write_plan(run_directory, {"pretrain": PLANNED, "anneal": replace(PLANNED, layout="another")})
    text = Page(write_report(run_directory)).text
    assert "Plan versus measured" in text
    assert "planned for another layout" in text
    assert [len(stage.planned) for stage in read_run(run_directory).stages] == [3, 0, 0]


@pytest.mark.parametrize("content", ["{", '{"version": 2, "stages": {}}', '{"version": 1, "stages": {"pretrain": {}}}'])
def test_a_damaged_plan_is_named_and_left_out(tmp_path: Path, content: str) -> None:
    run_directory = write_example_run(tmp_path / "demo")
    (run_directory / FILE_NAME).write_text(content)
    assert f"{FILE_NAME} is damaged" in Page(write_report(run_directory)).text


def test_a_plan_is_plain_json(tmp_path: Path) -> None:
    write_plan(tmp_path, {"pretrain": PLANNED})
    assert json.loads((tmp_path / FILE_NAME).read_text())["stages"]["pretrain"]["step_seconds"] == 2.0
