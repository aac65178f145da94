"""A run's log as tables: nothing is lost, and what was done again can be told apart."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.unit.reporting.example_run import write_example_run
from training.errors import ConfigError, ExitCode
from training.reporting.export import export
from training.reporting.metrics import FILE_NAME, latest_steps, read_metrics
from training.reporting.records import EvalRecord, StepRecord


def test_parquet_holds_every_record_with_its_numbers(tmp_path: Path) -> None:
    run = write_example_run(tmp_path / "run")
    metrics = read_metrics(run / FILE_NAME)
    paths = export(run, tmp_path / "tables", "parquet")
    assert {path.stem for path in paths} == {record.kind for record in metrics.records}
    found = {path.stem: pq.read_table(path).to_pylist() for path in paths}
    for kind, rows in found.items():
        assert len(rows) == sum(record.kind == kind for record in metrics.records)
    steps = [record for record in metrics.records if isinstance(record, StepRecord)]
    assert [(row["step"], row["loss"], row["attempt"]) for row in found["step"]] == [
        (step.step, step.loss, step.attempt) for step in steps
    ]
    counting = [row for row in found["step"] if row["counts"]]
    assert [(row["step"], row["attempt"]) for row in counting] == [
        (step.step, step.attempt) for step in latest_steps(metrics.records)
    ]
    assert len(counting) < len(steps)
    evals = [record for record in metrics.records if isinstance(record, EvalRecord)]
    assert [row["metrics.choice_accuracy"] for row in found["eval"]] == [
        record.metrics["choice_accuracy"] for record in evals
    ]
    assert found["eval"][0]["samples"] == evals[0].samples


def test_csv_holds_the_same(tmp_path: Path) -> None:
    run = write_example_run(tmp_path / "run")
    metrics = read_metrics(run / FILE_NAME)
    export(run, tmp_path / "tables", "csv")
    with (tmp_path / "tables" / "eval.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    evals = [record for record in metrics.records if isinstance(record, EvalRecord)]
    assert [float(row["bits_per_byte"]) for row in rows] == [record.bits_per_byte for record in evals]
    assert [json.loads(row["samples"]) for row in rows] == [record.samples for record in evals]


def test_the_command_names_what_it_wrote(tmp_path: Path) -> None:
    run = write_example_run(tmp_path / "run")
    command = [sys.executable, "-m", "training.reporting.export"]
    done = subprocess.run([*command, str(run)], capture_output=True, text=True, check=True)
    assert str(run / "export" / "step.csv") in done.stdout.splitlines()
    refused = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert refused.returncode == ExitCode.BAD_CONFIG
    assert "there is no metrics.jsonl in it" in refused.stderr
    with pytest.raises(ConfigError):
        export(tmp_path, tmp_path, "csv")
