"""`python -m training.reporting.export RUN_DIR`: metrics.jsonl as tables, one file per kind of record.

CSV for spreadsheets, Parquet for pandas, Polars, DuckDB. What is nested (an evaluation's metrics, experts) becomes
columns of its own, named like metrics.bits_per_byte; lists stay lists, in CSV as JSON. Steps that were done again after
a crash or a rollback are in the tables too, with `counts` false.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.durable_files import write_durably
from training.errors import AutarkyError, StorageError
from training.reporting.goodput import steps_that_count
from training.reporting.metrics import Metrics, read_metrics
from training.reporting.records import StepRecord, to_json_object
from training.reporting.summary import metrics_path

FORMATS = ("csv", "parquet")

Row = dict[str, Any]


def tables(metrics: Metrics) -> dict[str, list[Row]]:
    """Return kind -> one row per record, in the order of the log; all rows of a kind have the same columns."""
    counting = set(map(id, steps_that_count(metrics.records)))
    found: dict[str, list[Row]] = {}
    for record, time_seconds in zip(metrics.records, metrics.times_seconds, strict=True):
        row = _flat(to_json_object(record, time_seconds=time_seconds))
        if isinstance(record, StepRecord):
            row["counts"] = id(record) in counting
        found.setdefault(str(row.pop("kind")), []).append(row)
    for kind, rows in found.items():
        columns = list(dict.fromkeys(name for row in rows for name in row))
        found[kind] = [{name: row.get(name) for name in columns} for row in rows]
    return found


def export(run_directory: Path, folder: Path, file_format: str) -> list[Path]:
    """Write the tables of a run into a folder, and return their paths; files of the same name are replaced whole.

    Args:
        run_directory: of the run.
        folder: made if it is not there.
        file_format: one of FORMATS.

    Raises:
        ConfigError: the directory holds no metrics.jsonl.
        StorageError: it cannot be read, or the folder not be written.
    """
    source = metrics_path(run_directory)
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, rows in tables(read_metrics(source)).items():
            path = folder / f"{kind}.{file_format}"
            write_durably(path, _csv(rows) if file_format == "csv" else _parquet(rows))
            paths.append(path)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}\n  -> free space or give another --out") from error
    return paths


def _flat(values: Mapping[str, Any], prefix: str = "") -> Row:
    """Return nested objects as columns; an object that is null or empty has none."""
    row: Row = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            row |= _flat(value, f"{prefix}{name}.")
        else:
            row[f"{prefix}{name}"] = value
    return row


def _csv(rows: Sequence[Row]) -> str:
    lines = _Lines()
    writer = csv.DictWriter(lines, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()})
    return "".join(lines.text)


class _Lines:
    """What csv writes into."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def write(self, line: str) -> None:
        """Take one line."""
        self.text.append(line)


def _parquet(rows: Sequence[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue().to_pybytes()


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reporting.export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run_directory", type=Path, metavar="RUN_DIR", help="for example runs/<run id>")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="default: csv")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN_DIR/export")
    arguments = parser.parse_args()
    run_directory: Path = arguments.run_directory
    try:
        for path in export(run_directory, arguments.out or run_directory / "export", arguments.format):
            print(path)  # noqa: T201
    except AutarkyError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
