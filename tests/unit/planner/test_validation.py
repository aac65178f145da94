import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from training.planner.constants import CONSTANTS
from training.planner.fit import PARAMETERS, fit, with_values
from training.planner.published_memory import predicted_gib, published_gib, sweep_verdicts
from training.planner.published_split import Use, runs_of
from training.planner.step_time import step_time
from training.planner.validation import as_text, main, relative_error, report

REPOSITORY = Path(__file__).parents[3]


def test_the_docs_are_what_the_command_prints() -> None:
    command = [sys.executable, "-m", "training.planner.validation", "--markdown"]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (REPOSITORY / "docs" / "planner_validation.md").read_text()


@pytest.mark.parametrize(("use", "most"), [(Use.calibration, 0.05), (Use.left_out, 0.10)])
def test_step_times_are_within_what_is_claimed(use: Use, most: float) -> None:
    errors = [relative_error(run) for run in runs_of()[0] if run.use is use]
    assert mean(map(abs, errors)) <= most


def test_what_is_reached_is_said_of_all_rows_too() -> None:
    (_, table) = report()[0]
    reached = {
        row[0]: (float(row[2].removesuffix(" %")), float(row[3].removesuffix(" %")), row[4]) for row in table[1:]
    }
    for mean_percent, goal_percent, verdict in reached.values():
        assert verdict == ("reached" if mean_percent <= goal_percent else "missed")
    assert [verdict for _, _, verdict in reached.values()] == ["reached", "reached", *["missed"] * 4]
    assert reached["these and the sweep's other runs that calibrated"][0] < 7
    assert reached["these and the sweep's other runs left out"][0] < 12


def test_memory_is_within_a_tenth() -> None:
    errors = []
    for run in runs_of()[0]:
        figure = published_gib(run.row)
        if figure is not None:
            errors.append(predicted_gib(run.row, run.job) / figure - 1)
    assert len(errors) == 130
    assert mean(map(abs, errors)) <= 0.10


def test_out_of_memory_is_told_right_for_nineteen_of_twenty_runs() -> None:
    counts = sweep_verdicts()
    assert sum(counts.values()) == 2076 - 215
    assert counts[False, False] + counts[True, True] >= 0.95 * sum(counts.values())


def test_another_file_is_validated_without_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [dict(run.row) for run in runs_of()[0] if run.source.startswith("Narayanan")]
    path = tmp_path / "more.json"
    path.write_text(json.dumps([*rows, rows[0] | {"id": "odd", "gpu": "abacus"}]))
    main(["--runs", str(path)])
    printed = capsys.readouterr().out
    assert "Step time, left out" in printed
    assert "Step time, calibration" not in printed
    assert "odd: gpu=abacus: no such device is known" in printed
    assert "sweep" not in printed


def test_tables_are_printed_aligned_or_as_markdown() -> None:
    sections = [("Heading", [("a", "b"), ("long cell", "1")])]
    assert as_text(sections, markdown=False) == "Heading\na          b\nlong cell  1\n"
    assert as_text(sections, markdown=True).endswith("## Heading\n\n| a | b |\n| --- | --- |\n| long cell | 1 |\n")


def test_every_fitted_constant_stands_between_its_bounds_and_is_put_where_it_belongs() -> None:
    values = [parameter.value(CONSTANTS) for parameter in PARAMETERS]
    for parameter, value in zip(PARAMETERS, values, strict=True):
        assert parameter.low <= value <= parameter.high, parameter.name
    assert with_values(CONSTANTS, values) == CONSTANTS
    changed = with_values(CONSTANTS, [value * 0.99 for value in values])
    assert [parameter.value(changed) for parameter in PARAMETERS] == [value * 0.99 for value in values]


def test_a_report_says_what_was_not_used() -> None:
    headings = [heading for heading, _ in report()]
    assert "Not used for step time" in headings
    assert "Step time of what is taken for faults" in headings


def test_the_fit_finds_the_constants_that_times_were_made_with() -> None:
    known = {parameter.name: place for place, parameter in enumerate(PARAMETERS)}
    truth = [parameter.value(CONSTANTS) for parameter in PARAMETERS]
    truth[known["efficiency.ampere_gemm_sustained"]] = 0.75
    truth[known["flash_1.ampere_share_of_peak"]] = 0.3
    made_with = with_values(CONSTANTS, truth)
    runs = [run for run in runs_of()[0] if run.use is Use.calibration and "A100" in run.job.device.name][::4]
    runs = [replace(run, step_seconds=step_time(run.job, made_with).seconds) for run in runs]
    found = fit([(run, 1.0) for run in runs])
    assert found[known["efficiency.ampere_gemm_sustained"]] == pytest.approx(0.75, rel=0.05)
    assert found[known["flash_1.ampere_share_of_peak"]] == pytest.approx(0.3, rel=0.05)
    constants = with_values(CONSTANTS, found)
    assert max(abs(relative_error(run, constants)) for run in runs) < 0.02
