"""The page of one evaluation that was made by hand: its numbers and its items, beside its report."""

from collections.abc import Mapping
from pathlib import Path

from training.durable_files import write_durably
from training.reporting.evaluations import metric_groups
from training.reporting.item_tables import ItemTable, read_items
from training.reporting.pages import MOST_ROWS, render_page


def write_evaluation_page(
    report: Path, *, suite: str, weights: str, metrics: Mapping[str, float], seconds: float
) -> Path:
    """Return the path of the page, FILE.html beside the report FILE.json; it asks the network for nothing.

    Args:
        report: the report, whose items are shown.
        suite: name of what was measured.
        weights: what was measured.
        metrics: all numbers by name.
        seconds: how long it took.

    Raises:
        StorageError: the page cannot be written.
    """
    tables: list[ItemTable] = []
    fault = None
    try:
        tables = read_items(report, most_rows=MOST_ROWS)
    except (OSError, ValueError) as error:
        fault = str(error)
    path = report.with_name(f"{report.stem if report.suffix == '.json' else report.name}.html")
    page = render_page(
        "evaluation.html.j2",
        suite=suite,
        weights=weights,
        seconds=seconds,
        groups=metric_groups([metrics]),
        tables=tables,
        path=report.name,
        fault=fault,
    )
    write_durably(path, page)
    return path
