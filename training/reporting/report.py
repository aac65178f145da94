"""report.html: one page about a run that needs no network, for the desk, the phone and the archive."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from training.durable_files import write_durably
from training.reporting import formatting
from training.reporting.charts import charts_html
from training.reporting.evaluations import MOST_IN_BETWEEN, newest_of_stages, suite_tables
from training.reporting.expert_health import expert_health
from training.reporting.item_tables import ReportItems, items_in_run
from training.reporting.pages import MOST_ROWS, render_page
from training.reporting.records import EvalRecord
from training.reporting.summary import RunSummary, read_run


def write_report(run_directory: Path) -> Path:
    """Return the path of report.html, written anew from what the run directory holds now.

    Raises:
        ConfigError: the directory holds no metrics.jsonl.
        StorageError: the page cannot be written; an older one is whole.
    """
    path = run_directory / "report.html"
    summary = read_run(run_directory)
    newest = [
        (record, items_in_run(run_directory, record.report, most_rows=MOST_ROWS))
        for record in newest_of_stages(summary.evals)
    ]
    write_durably(path, _render(summary, newest))
    return path


def _render(summary: RunSummary, newest: Sequence[tuple[EvalRecord, ReportItems]]) -> str:
    """Return the page. All text of the run is escaped; only plotly's own output is taken as HTML."""
    tables = suite_tables(summary.evals)
    shown = {id(record) for table in tables for record in table.occasions}
    return render_page(
        "report.html.j2",
        run=summary,
        suite_tables=tables,
        most_in_between=MOST_IN_BETWEEN,
        newest=newest,
        shown_evals=[record for record in summary.evals if id(record) in shown],
        charts={name: Markup(html) for name, html in charts_html(summary).items()},
        plotly_js=Markup(get_plotlyjs() if summary.steps else ""),
        expert_health=expert_health(summary.steps),
        prompts=list(dict.fromkeys(sample["prompt"] for record in summary.evals for sample in record.samples)),
    )


def text_summary(summary: RunSummary) -> str:
    """Return about ten lines for a terminal."""
    lines = [f"run {summary.run_id}: {summary.state.upper()}"]
    for gate in summary.blocking_gates:
        lines += [f"  gate after {gate.stage} BLOCKED: {reason}" for reason in gate.reasons]
    took = formatting.duration(summary.last_time_seconds - summary.first_time_seconds)
    lines.append(f"  {formatting.when(summary.first_time_seconds)}, {took}, {summary.num_attempts} attempt(s)")
    lines.append(f"  {formatting.count(summary.tokens)} tokens in {len(summary.steps)} steps")
    for stage in summary.stages:
        loss = f", loss {stage.first_loss:.4f} -> {stage.last_loss:.4f}" if stage.first_loss is not None else ""
        bits = f", {stage.bits_per_byte:.4f} bits per byte" if stage.bits_per_byte is not None else ""
        lines.append(f"  {stage.name}: {stage.status}, {stage.num_steps} steps{loss}{bits}")
    lines += [f"  {health}"] if (health := expert_health(summary.steps)) else []
    lines.append(f"  {len(summary.checkpoints)} checkpoint(s), {len(summary.incidents)} incident(s)")
    lines += [f"  note: {note}" for note in summary.notes]
    lines.append(f"  continue: {summary.resume_command}")
    return "\n".join(lines)
