"""report.html: one page about a run that needs no network, for the desk, the phone and the archive."""

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from training.durable_files import write_durably
from training.reporting.charts import Chart, figures_json
from training.reporting.evaluations import MOST_IN_BETWEEN, newest_of_stages, suite_tables
from training.reporting.expert_health import expert_health
from training.reporting.item_tables import encodable, items_in_run
from training.reporting.layer_health import layer_health
from training.reporting.pages import MOST_ROWS, render_page
from training.reporting.report.ahead import ExpectedEnd, expected_end
from training.reporting.report.attention import findings, newest_loads
from training.reporting.report.curves import curves
from training.reporting.report.headline import facts, progress
from training.reporting.report.heat_maps import heat_maps
from training.reporting.report.memory import memory_chart, memory_of_stages
from training.reporting.report.samples import samples_of
from training.reporting.report.scores import evaluation_charts
from training.reporting.report.steps import by_stage
from training.reporting.report.time_lost import time_chart, time_rows
from training.reporting.report.traces import costliest, trace_link
from training.reporting.summary import RunSummary, read_run

FILE_NAME = "report.html"
_MOST_INCIDENTS = 1000
_MOST_CHECKPOINTS = 200
_LEAST_SILENCE_SECONDS = 120.0
_SILENT_STEPS = 10
"""A running run that writes nothing for so long, or so many of its usual steps, is called silent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What a page shows, without what is the same in all pages."""

    title: str
    body: str
    """HTML in which all text of the run is escaped."""
    figures: str
    """See `figures_json`."""


def write_report(run_directory: Path, summary: RunSummary | None = None) -> Path:
    """Return the path of report.html, written anew.

    Args:
        run_directory: of the run.
        summary: of it; None reads what it holds now.

    Raises:
        ConfigError: the directory holds no metrics.jsonl.
        StorageError: the page cannot be written; an older one is whole.
    """
    path = run_directory / FILE_NAME
    content = run_content(run_directory, read_run(run_directory) if summary is None else summary)
    write_durably(path, whole_page(content))
    return path


def run_content(run_directory: Path, summary: RunSummary, *, live: bool = False) -> Content:
    """Return the content of a run's report.

    Args:
        run_directory: of the run; reports of evaluations are read in it.
        summary: of the run.
        live: whether the page follows the run.
    """
    end = expected_end(summary)
    charts = {chart.name: chart for chart in _charts(summary, end)}
    attempts = summary.goodput.attempts if summary.goodput else []
    starts = {start.attempt: start for start in summary.starts}
    newest_start = summary.starts[-1:]
    timed_incidents = list(zip(summary.incidents, summary.incident_times_seconds, strict=True))
    body = render_page(
        "report/body.html.j2",
        run=summary,
        live=live,
        charts=charts,
        facts=facts(summary),
        progress=progress(summary, end),
        findings=findings(summary),
        silent_after_seconds=_silent_after_seconds(summary),
        ranges={stage.stage: (int(stage.steps[0]), int(stage.steps[-1])) for stage in by_stage(summary.steps)},
        incidents=timed_incidents[: -_MOST_INCIDENTS - 1 : -1],
        suite_tables=suite_tables(summary.evals),
        most_in_between=MOST_IN_BETWEEN,
        newest=[
            (record, items_in_run(run_directory, record.report, most_rows=MOST_ROWS))
            for record in newest_of_stages(summary.evals)
        ],
        prompts=samples_of(summary.evals),
        time_rows=time_rows(summary.goodput) if summary.goodput else [],
        attempts=[(time, starts[time.attempt]) for time in attempts],
        memory=memory_of_stages(summary),
        expert_health=expert_health(summary.steps, newest_loads(summary)),
        layer_health=layer_health(summary.layers),
        most_rows=_MOST_CHECKPOINTS,
        commit=_commit(summary),
        trace_link=trace_link,
        costliest=costliest,
        fingerprints=[f for start in newest_start for f in (start.data_fingerprint, start.tokenizer_hash) if f],
    )
    return Content(title=f"{summary.run_id}: {summary.state}", body=body, figures=figures_json(charts.values()))


def whole_page(content: Content, *, live_stamp: str | None = None) -> str:
    """Return a page that holds everything it needs.

    Args:
        content: what it shows.
        live_stamp: of the content, for a page that asks the server it came from for newer content; None for a page
            that asks nothing of anybody.
    """
    needs_plotly = content.figures != "{}" or live_stamp is not None
    plotly_js, report_js = (get_plotlyjs() if needs_plotly else ""), _report_js()
    scripts = " ".join(f"'sha256-{_hash(script)}'" for script in (plotly_js, report_js))
    policy = f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:"
    policy += "; base-uri 'none'; form-action 'none'"
    return render_page(
        "report/report.html.j2",
        policy=Markup(policy + ("; connect-src 'self'" if live_stamp is not None else "")),
        title=content.title,
        live=live_stamp is not None,
        stamp=live_stamp or "",
        body=Markup(content.body),
        figures=Markup(content.figures),
        plotly_js=Markup(plotly_js),
        report_js=Markup(report_js),
    )


def _charts(summary: RunSummary, end: ExpectedEnd | None) -> list[Chart]:
    return list(
        chain(
            curves(summary, end),
            evaluation_charts(summary),
            heat_maps(summary),
            memory_chart(summary),
            time_chart(summary),
        )
    )


def _commit(summary: RunSummary) -> str:
    """Return the commit that the run was started from; empty if there is none that may stand in a command."""
    commit = summary.environment.get("git_commit", "")
    return commit if re.fullmatch(r"[0-9a-f]{7,64}", commit) else ""


def _silent_after_seconds(summary: RunSummary) -> float:
    """Return after what silence of a running run somebody should look; 1e12, never, of one that has ended."""
    if summary.state != "running":
        return 1e12
    latest = summary.steps[-_SILENT_STEPS:]
    slowest = max((step.seconds for step in latest), default=0.0)
    return max(_LEAST_SILENCE_SECONDS, _SILENT_STEPS * slowest)


@cache
def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(encodable(script).encode()).digest()).decode()


@cache
def _report_js() -> str:
    return (Path(__file__).parent / "report.js").read_text()
