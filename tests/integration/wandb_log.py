"""Compares what a wandb server has of a run with metrics.jsonl."""

from itertools import pairwise
from pathlib import Path

from tests.wandb_server import Run
from training.reporting.metrics import read_metrics
from training.reporting.records import StepRecord
from training.reporting.wandb_rows import WandbRows


def assert_equal_to_the_log(run: Run, run_directory: Path) -> None:
    """Check that the server has every record once, in order and with its numbers, and that the axes only grow."""
    log = read_metrics(run_directory / "metrics.jsonl")
    rows = WandbRows()
    expected = [
        {"_step": line, "_timestamp": at} | rows.row(record)
        for line, record, at in zip(log.line_numbers, log.records, log.times_seconds, strict=True)
    ]
    history = run.history()
    for row, wanted in zip(history, expected, strict=True):
        numbers = {name: value for name, value in row.items() if not name.endswith("per_item") and name != "_runtime"}
        assert numbers == wanted
    assert run.overwritten == []
    # Once more without the rows' own rules: each step of each attempt, and each step once among those that grow.
    losses = [row.get("train/loss", row.get("redone/train/loss")) for row in history]
    steps = [record for record in log.records if isinstance(record, StepRecord)]
    assert [loss for loss in losses if loss is not None] == [record.loss for record in steps]
    grown = [row for row in history if "train/loss" in row]
    assert [row["step"] for row in grown] == list(range(1, max(record.step for record in steps) + 1))
    for axis in ("_step", "tokens"):
        assert all(a < b for a, b in pairwise(row[axis] for row in history if axis in row))
