"""RUN_DIR/attempts.jsonl as launch/attempts.py writes it: when starts of a run began and ended, and how."""

from pathlib import Path
from typing import Any

from training.plain_files import parse_json, read_text

FILE_NAME = "attempts.jsonl"


def read_starts(directory: Path) -> list[dict[str, Any]]:
    """Return the records of a run's starts and ends; lines that are none (a torn last one) are left out."""
    try:
        text = read_text(directory / FILE_NAME)
    except FileNotFoundError:
        return []
    return [record for line in text.splitlines() if (record := _record(line)) is not None]


def end_times(directory: Path) -> list[float]:
    """Return the Unix times at which whoever watched a start saw its end, in the order they were written."""
    ends = [record.get("time") for record in read_starts(directory) if record["event"] == "end"]
    return [float(time) for time in ends if isinstance(time, int | float) and not isinstance(time, bool)]


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "event" in record else None
