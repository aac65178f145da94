import subprocess
import sys
from pathlib import Path

import pytest

from training.config.reliability_schema import ReliabilityConfig
from training.planner.goodput_checks import Check, percent
from training.planner.goodput_validation import page, published_rows
from training.planner.published_failures import PublishedFigure, mtbf_figures, two_rates
from training.planner.reliability import interruptions_of

REPOSITORY = Path(__file__).parents[3]


def test_the_docs_are_what_the_command_prints_and_all_that_is_claimed_holds() -> None:
    command = [sys.executable, "-m", "training.planner.goodput_validation", "--markdown"]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (REPOSITORY / "docs" / "planner_goodput.md").read_text()


def test_a_closed_form_that_does_not_hold_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "training.planner.goodput_validation.ettr_checks", lambda: [Check(cells=("x",) * 6, holds=False)]
    )
    monkeypatch.setattr("training.planner.goodput_validation.interval_checks", list)
    monkeypatch.setattr("training.planner.goodput_validation.formula_checks", list)
    assert page()[1] is False


def test_two_rates_give_back_both_jobs() -> None:
    node_rate, job_rate = two_rates((128, 7.9), (2048, 1.8))
    reliability = ReliabilityConfig(failures_per_1000_node_days=node_rate, job_failures_per_day=job_rate)
    for nodes, hours in ((128, 7.9), (2048, 1.8)):
        job = interruptions_of(reliability, num_nodes=nodes, devices_per_node=8, reload_seconds=0)
        assert job.mtbf_seconds / 3600 == pytest.approx(hours)


def test_figures_that_fail_are_in_the_table() -> None:
    errors = {(row[1], row[2]): row[5] for row in published_rows(mtbf_figures())}
    assert errors["hours between failures, 1,024 GPUs", "6.50 failures per 1,000 node-days"] == "+265 %"


def test_a_bound_is_met_or_not() -> None:
    figure = PublishedFigure(source="s", what="w", given="g", published=90.0, predict=lambda: 89.9, is_bound=True)
    assert published_rows([figure])[0][4:6] == ("> 90", "not met")


@pytest.mark.parametrize(("error", "text"), [(0.0123, "+1.23 %"), (-0.00001, "+0.00 %"), (-0.5, "-50.00 %")])
def test_errors_have_a_sign_unless_they_are_none(error: float, text: str) -> None:
    assert percent(error) == text
