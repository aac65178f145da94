"""What became of each item of an evaluation, read from its report (`eval/**/<suite>.json`) as tables for people.

The answers are whatever a model wrote: every cell is a number or a text of bounded length that can be encoded, and no
cell is taken for markup anywhere.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.plain_files import read_json

Cell = str | float | bool | None

LARGEST_REPORT_BYTES = 2**28
"""A report that is larger is not read for tables; it took one gigabyte or so of memory."""
_LONGEST_CELL = 1000
"""Characters of a cell."""
_TASK_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
"""Task names become parts of file names where wandb keeps tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemTable:
    """The items of one task."""

    task: str
    """A benchmark, or a task on held-out text."""
    columns: list[str]
    rows: list[list[Cell]]
    """The first items, in the benchmark's order."""
    num_left_out: int
    """Items that came after them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportItems:
    """The tables of one report."""

    path: str
    """Of the report, in the run directory."""
    tables: list[ItemTable]
    fault: str | None
    """Why there is none, as part of a sentence; None if nothing is wrong."""


def items_in_run(run_directory: Path, report: str, *, most_rows: int) -> ReportItems:
    """Return the tables of a report in a run directory, or why they cannot be shown.

    Args:
        run_directory: of the run.
        report: path of the report, as a record names it; one that leads out of the run's folder `eval` is not read.
        most_rows: rows of each table.
    """
    try:
        run_directory = run_directory.resolve()
        path = (run_directory / report).resolve()
        if not path.is_relative_to(run_directory / "eval"):
            raise ValueError("it does not lie in the run's folder eval")
        return ReportItems(path=report, tables=read_items(path, most_rows=most_rows), fault=None)
    except FileNotFoundError:
        return ReportItems(path=report, tables=[], fault="it is not there")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        return ReportItems(path=report, tables=[], fault=str(error))


def read_items(path: Path, *, most_rows: int) -> list[ItemTable]:
    """Return a table for each task of a report that has items.

    Raises:
        OSError: the report is not there or cannot be read.
        ValueError: it is no report of an evaluation.
    """
    report = read_json(path, largest_bytes=LARGEST_REPORT_BYTES)
    tasks = report.get("tasks") if isinstance(report, dict) else None
    if not isinstance(tasks, dict):
        raise ValueError("it is no report of an evaluation")
    tables = []
    for name, task in tasks.items():
        items = task.get("items") if isinstance(task, dict) else None
        if not _TASK_NAME.fullmatch(name) or not isinstance(items, list) or not all(isinstance(i, dict) for i in items):
            raise ValueError(f"its task {encodable(name)[:100]!r} is none")
        if items:
            try:
                tables.append(_table(name, items, most_rows))
            except OverflowError as error:
                raise ValueError(f"a number of its task {name} is none: {error}") from error
    return tables


def _table(name: str, items: list[dict[str, Any]], most_rows: int) -> ItemTable:
    rows = [_row(item) for item in items[:most_rows]]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return ItemTable(
        task=name,
        columns=columns,
        rows=[[row.get(column) for column in columns] for row in rows],
        num_left_out=max(0, len(items) - most_rows),
    )


def _row(item: dict[str, Any]) -> dict[str, Cell]:
    """Return column -> cell of an item: a benchmark's, or a document, question or sample of held-out text."""
    row: dict[str, Cell] = {}
    for name, value in item.items():
        match name, value:
            case "key", _:  # pairs items of two reports; says nothing to people
                continue
            case "scores", dict():
                row |= {_short(score): _ratio(value[score]) for score in value}
            case "prompt", _:
                row["prompt"] = _end(_words(value))
            case "answer" | "tries", _:
                row[name] = _short(_answer(value))
            case _, bool() | float() | None:
                row[_short(name)] = value
            case _, int():
                row[_short(name)] = float(value) if abs(value) < 2**53 else _short(str(value))
            case _:
                row[_short(name)] = _short(_words(value))
    return row


def _ratio(value: Any) -> Cell:
    """Return an item's part of a metric as one number: it is kept as a number, or as numerator and denominator."""
    match value:
        case [int() | float() as above, int() | float() as below]:
            return float(above) / float(below) if below else math.nan
        case int() | float():
            return float(value)
    return _short(_words(value))


def _answer(value: Any) -> str:
    """Return what a model answered; where it tried more than once, a numbered line or paragraph for each try."""
    match value:
        case [[int() | float(), bool()], [int() | float(), bool()], *_] if all(map(_is_likelihood, value)):
            likeliest = max(range(len(value)), key=lambda choice: value[choice][0])
            return f"{likeliest} (log-likelihoods {', '.join(f'{logprob:.4g}' for logprob, _ in value)})"
        case [only]:
            return _answer(only)
        case [_, *_]:
            return "\n".join(f"{number}: {_answer(one)}" for number, one in enumerate(value, start=1))
        case {"passed": bool() as passed, "why": why}:  # what became of a program
            return "passed" if passed else f"failed: {_words(why)}"
        case {"solved": bool() as solved, "fault": fault}:  # of a workflow
            outcome = "solved" if solved else f"not solved: {_words(fault)}"
            return f"{outcome} ({value.get('num_turns')} turns, {value.get('num_calls')} calls)"
    return _words(value)


def _is_likelihood(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int | float)


def _words(value: Any) -> str:
    """Return a text as it is, and anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(value: str) -> str:
    """Return a text's beginning, with the number of characters that are left out."""
    left_out = len(value) - _LONGEST_CELL
    return encodable(value) if left_out <= 0 else f"{encodable(value[:_LONGEST_CELL])} … ({left_out:,} more characters)"


def _end(value: str) -> str:
    """Return a text's end, where a prompt asks what it asks."""
    return encodable(value) if len(value) <= _LONGEST_CELL else f"… {encodable(value[-_LONGEST_CELL:])}"


def encodable(value: str) -> str:
    """Return a text that can be encoded: halves of characters, which JSON and tokenizers let through, become "?"."""
    return value.encode("utf-8", "replace").decode("utf-8")
