"""Read what a run left behind, with as little of the product's own code as possible."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.checkpoint.catalog import verify

NUMBERS = ("step", "stage", "loss", "grad_norm", "lr", "tokens", "batch_id")
"""Fields of a step record that repeat bit by bit; the others tell about time."""


def records(run_directory: Path, kind: str) -> list[dict[str, Any]]:
    """Return the whole lines of metrics.jsonl of one kind, in the order in which they were written."""
    path = run_directory / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if line.endswith("\n") and record["kind"] == kind:
            found.append(record)
    return found


def numbers_by_step(steps: Iterable[dict[str, Any]]) -> dict[int, tuple[Any, ...]]:
    """Return the numbers of every step as its latest attempt made them."""
    return {step["step"]: tuple(step[name] for name in NUMBERS) for step in sorted(steps, key=lambda s: s["attempt"])}


def ledger(run_directory: Path) -> dict[str, Any]:
    """Return stages.json, or {} before it exists."""
    path = run_directory / "stages.json"
    return json.loads(path.read_text()) if path.exists() else {}


def stage_status(run_directory: Path, name: str) -> str | None:
    """Return the status of a training stage in the ledger."""
    return next((entry["status"] for entry in ledger(run_directory).get("stages", []) if entry["name"] == name), None)


def last_checkpoint(run_directory: Path) -> Path:
    """Return the newest committed checkpoint."""
    return max((run_directory / "checkpoints").glob("step-????????"))


def contents(checkpoint: Path) -> dict[str, Any]:
    """Return everything a checkpoint holds, tensors as the hashes of their files, after checking these."""
    manifest = verify(checkpoint)
    return {
        "progress": manifest.progress,
        "slices": manifest.slices,
        "files": {file.name: file.sha256 for file in manifest.files},
    }
