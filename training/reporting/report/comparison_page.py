"""One page about several runs that needs no network."""

from collections.abc import Sequence
from pathlib import Path

from training.durable_files import write_durably
from training.reporting.charts import figures_json
from training.reporting.pages import render_page
from training.reporting.report.comparison import (
    comparison_charts,
    differing_settings,
    final_numbers,
    final_scores,
    read_runs,
)
from training.reporting.report.page import Content, whole_page


def write_comparison(directories: Sequence[Path], out: Path) -> Path:
    """Return the path of the page, written anew.

    Args:
        directories: of the runs.
        out: the page.

    Raises:
        ConfigError: there are too many runs, or a directory is no run's.
        StorageError: a run cannot be read, or the page cannot be written.
    """
    runs = read_runs(directories)
    charts = {chart.name: chart for chart in comparison_charts(runs)}
    body = render_page(
        "report/comparison.html.j2",
        runs=runs,
        charts=charts,
        numbers=final_numbers(runs),
        scores=final_scores(runs),
        settings=differing_settings(runs),
    )
    title = f"{len(runs)} runs compared"
    write_durably(out, whole_page(Content(title=title, body=body, figures=figures_json(charts.values()))))
    return out
