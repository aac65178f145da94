"""Several runs in one page: their curves, their numbers, and the settings in which they differ."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.reporting.example_full_run import write_full_example
from tests.unit.reporting.example_run import write_example_run
from tests.unit.reporting.page import Page
from training.errors import ConfigError, ExitCode
from training.reporting.report.comparison import (
    MOST_RUNS,
    differing_settings,
    final_numbers,
    final_scores,
    read_runs,
)
from training.reporting.report.comparison_page import write_comparison


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    (tmp_path / "more").mkdir()
    a, b = write_full_example(tmp_path / "first"), write_full_example(tmp_path / "more" / "first")
    config = (b / "config.yaml").read_text().replace("lr: 0.001", "lr: 0.002").replace("name: demo", "id: 7")
    (b / "config.yaml").write_text(config)
    return [a, b, write_example_run(tmp_path / "third", blocked=True)]


def test_only_settings_that_differ_are_shown_and_none_that_only_names_the_run(directories: list[Path]) -> None:
    runs = read_runs(directories[:2])
    assert [(row.name, row.values) for row in differing_settings(runs)] == [
        ("optimizer.lr", ["0.001", "0.002"]),
        ("run.name", ["demo", "–"]),
    ]


def test_runs_of_one_name_are_told_apart(directories: list[Path]) -> None:
    assert [run.label for run in read_runs(directories)] == [str(directories[0]), str(directories[1]), "third"]


def test_numbers_and_scores_stand_beside_each_other(directories: list[Path]) -> None:
    runs = read_runs(directories)
    numbers = {row.name: row.values for row in final_numbers(runs)}
    assert numbers["state"] == ["done", "done", "blocked"]
    assert numbers["steps"] == ["110", "110", "90"]
    assert numbers["price so far"][2] == "–"
    scores = {row.name: row.values for row in final_scores(runs)}
    assert scores["quick: bits_per_byte"] == ["1.9", "1.9", "2.31"]
    assert scores["quick: cissp/acc"] == ["0.625", "0.625", "–"]


def test_the_page_has_a_curve_of_each_run_over_steps_and_tokens(directories: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison(directories, tmp_path / "out.html"))
    assert page.loads == []
    assert page.policy.startswith("default-src 'none'")
    expected = {"loss", "loss_by_tokens", "bits_per_byte", "tokens_per_second", "mfu", "time"}
    assert set(page.figures) == expected == {i[6:] for i in page.ids if i.startswith("chart-")}
    for name in ("loss", "loss_by_tokens"):
        assert [len(curve["x"]) for curve in page.figures[name]["data"]] == [110, 110, 90]
    assert page.figures["loss_by_tokens"]["data"][0]["x"][-1] == 110 * 4096
    assert next(bar["y"] for bar in page.figures["time"]["data"]) == [str(directories[0]), str(directories[1])]


def test_the_command_compares_and_refuses_too_many(directories: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.reporting"]
    out = tmp_path / "here.html"
    good = subprocess.run([*command, *directories, "--out", out], capture_output=True, text=True, check=True)
    assert good.stdout == f"{out}\n"
    assert Page(out).figures
    with pytest.raises(ConfigError, match="by colour"):
        read_runs([directories[0]] * (MOST_RUNS + 1))
    bad = subprocess.run([*command, *directories, "--serve"], capture_output=True, text=True, check=False)
    assert bad.returncode == ExitCode.BAD_CONFIG
    assert "one run is served at a time" in bad.stderr
