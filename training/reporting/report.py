"""report.html: one page about a run that needs no network, for the desk, the phone and the archive."""

from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from training.durable_files import write_durably
from training.reporting import formatting
from training.reporting.charts import charts_html
from training.reporting.summary import RunSummary, read_run


def write_report(run_directory: Path) -> Path:
    """Return the path of report.html, written anew from what the run directory holds now.

    Raises:
        ConfigError: the directory holds no metrics.jsonl.
        StorageError: the page cannot be written; an older one is whole.
    """
    path = run_directory / "report.html"
    write_durably(path, render(read_run(run_directory)))
    return path


def render(summary: RunSummary) -> str:
    """Return the page. All text of the run is escaped; only plotly's own output is taken as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": formatting.count,
        "num_bytes": formatting.num_bytes,
        "duration": formatting.duration,
        "when": _when,
    }
    return environment.get_template("report.html.j2").render(
        run=summary,
        charts={name: Markup(html) for name, html in charts_html(summary).items()},
        plotly_js=Markup(get_plotlyjs() if summary.steps else ""),
        prompts=list(dict.fromkeys(sample["prompt"] for record in summary.evals for sample in record.samples)),
    )


def text_summary(summary: RunSummary) -> str:
    """Return about ten lines for a terminal."""
    lines = [f"run {summary.run_id}: {summary.state.upper()}"]
    for gate in summary.blocking_gates:
        lines += [f"  gate after {gate.stage} BLOCKED: {reason}" for reason in gate.reasons]
    took = formatting.duration(summary.last_time_seconds - summary.first_time_seconds)
    lines.append(f"  {_when(summary.first_time_seconds)}, {took}, {summary.num_attempts} attempt(s)")
    lines.append(f"  {formatting.count(summary.tokens)} tokens in {len(summary.steps)} steps")
    for stage in summary.stages:
        loss = f", loss {stage.first_loss:.4f} -> {stage.last_loss:.4f}" if stage.first_loss is not None else ""
        bits = f", {stage.bits_per_byte:.4f} bits per byte" if stage.bits_per_byte is not None else ""
        lines.append(f"  {stage.name}: {stage.status}, {stage.num_steps} steps{loss}{bits}")
    lines.append(f"  {len(summary.checkpoints)} checkpoint(s), {len(summary.incidents)} incident(s)")
    lines += [f"  note: {note}" for note in summary.notes]
    lines.append(f"  continue: {summary.resume_command}")
    return "\n".join(lines)


def _when(time_seconds: float) -> str:
    return datetime.fromtimestamp(time_seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
