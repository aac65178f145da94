"""What evaluations found, over the steps they were made at: held-out text, and scores of tasks with their intervals."""

import math
from collections.abc import Iterator, Sequence
from html import escape

import plotly.graph_objects as go

from training.reporting.charts import Chart, Choice, figure_of, show_legend
from training.reporting.evaluations import occasion
from training.reporting.records import EvalRecord
from training.reporting.report.marks import add_bands
from training.reporting.report.steps import StageSteps, by_stage
from training.reporting.summary import RunSummary

HELD_OUT = {
    "bits_per_byte": "held-out bits per byte",
    "assistant_nats_per_token": "held-out nats per token of what the assistant says",
}
"""Metric -> its name in a title; lower is better."""
_NO_SCORES = ("_low", "_high", "_standard_error", "_stderr", "_items", "_documents", "_bytes", "_chance")
_NO_SCORES_OF_BENCHMARKS = ("items", "contaminated", "mean_overlap")
_LOWER_IS_BETTER = ("bits_per_byte", "nats_per_token")
_Z95 = 1.96
"""Standard errors on either side that hold 95 % of a normal distribution."""


def evaluation_charts(summary: RunSummary) -> Iterator[Chart]:
    """Give a chart of each measure of held-out text, and one of all scores."""
    stages = by_stage(summary.steps)
    for metric, title in HELD_OUT.items():
        if any(metric in record.metrics or _measured(record, metric) is not None for record in summary.evals):
            yield Chart(name=metric, title=title, figure=held_out(summary.evals, stages, metric))
    if any(score_names(record) for record in summary.evals):
        yield _scores(summary.evals, stages)


def score_names(record: EvalRecord) -> list[str]:
    """Return the metrics of an evaluation that are scores between 0 and 1, higher is better."""
    return [
        name
        for name, value in record.metrics.items()
        if 0 <= value <= 1
        and name not in HELD_OUT
        and not name.endswith((*_NO_SCORES, *_LOWER_IS_BETTER))
        and name.rpartition("/")[2] not in _NO_SCORES_OF_BENCHMARKS
    ]


def interval(record: EvalRecord, metric: str) -> tuple[float, float] | None:
    """Return the 95 % bounds that a suite reports of a metric, of a share within 0 and 1; None if it reports none."""
    metrics = record.metrics
    if f"{metric}_low" in metrics and f"{metric}_high" in metrics:
        return metrics[f"{metric}_low"], metrics[f"{metric}_high"]
    for name in (f"{metric}_standard_error", f"{metric}_stderr", f"{metric.rpartition('_')[0]}_standard_error"):
        if name in metrics and metric in metrics:
            value, half = metrics[metric], _Z95 * metrics[name]
            low, high = (0.0, 1.0) if 0 <= value <= 1 else (-math.inf, math.inf)
            return max(low, value - half), min(high, value + half)
    return None


def held_out(evals: Sequence[EvalRecord], stages: Sequence[StageSteps], metric: str) -> go.Figure:
    """Return a chart over steps: every evaluation is a point, those at a training stage's end are larger."""
    figure = figure_of()
    measured = [(record, value) for record in evals if (value := _measured(record, metric)) is not None]
    suites = list(dict.fromkeys(record.suite for record, _ in measured))
    for suite in suites:
        records = [record for record, _ in measured if record.suite == suite]
        values = [value for record, value in measured if record.suite == suite]
        figure.add_scatter(
            x=[record.step for record in records],
            y=values,
            error_y=_error_bars(records, values, metric),
            text=["" if record.in_between else f"{value:.3f}" for record, value in zip(records, values, strict=True)],
            hovertext=[escape(occasion(record)) for record in records],
            marker={"size": [5 if record.in_between else 9 for record in records]},
            mode="lines+markers+text",
            textposition="top right",
            cliponaxis=False,
            name=escape(suite),
        )
    add_bands(figure, stages, named=True)
    if len(suites) > 1:
        show_legend(figure)
    figure.update_layout(margin_r=44)
    return figure


def _scores(evals: Sequence[EvalRecord], stages: Sequence[StageSteps]) -> Chart:
    figure = figure_of()
    keys = list(dict.fromkeys((record.suite, name) for record in evals for name in score_names(record)))
    several = len({suite for suite, _ in keys}) > 1
    groups: dict[str, list[int]] = {}
    has_intervals = False
    for place, (suite, name) in enumerate(keys):
        records = [record for record in evals if record.suite == suite and name in record.metrics]
        bars = _error_bars(records, [record.metrics[name] for record in records], name)
        has_intervals |= bars is not None
        figure.add_scatter(
            x=[record.step for record in records],
            y=[record.metrics[name] for record in records],
            error_y=bars,
            hovertext=[escape(occasion(record)) for record in records],
            mode="lines+markers",
            marker={"size": 7},
            name=escape(f"{suite}: {name}" if several else name),
        )
        benchmark, slash, _ = name.partition("/")
        groups.setdefault(benchmark if slash else suite, []).append(place)
    add_bands(figure, stages)
    show_legend(figure)
    choices = [Choice(label=label, traces=traces) for label, traces in groups.items()] if len(groups) > 1 else []
    if choices:
        choices.insert(0, Choice(label="all", traces=list(range(len(keys)))))
    bars = "Bars are 95 % intervals, of the scores for which the suite reports one. " if has_intervals else ""
    note = f"{bars}The tables below have all numbers, chance too where it is known."
    return Chart(name="scores", title="scores of tasks, share", note=note, figure=figure, choices=choices)


def _error_bars(records: Sequence[EvalRecord], values: Sequence[float], metric: str) -> dict[str, object] | None:
    bounds = [interval(record, metric) for record in records]
    if not any(bounds):
        return None
    pairs = list(zip(values, bounds, strict=True))
    return {
        "array": [bound[1] - value if bound else 0.0 for value, bound in pairs],
        "arrayminus": [value - bound[0] if bound else 0.0 for value, bound in pairs],
        "thickness": 1.2,
        "width": 4,
    }


def _measured(record: EvalRecord, metric: str) -> float | None:
    return record.bits_per_byte if metric == "bits_per_byte" else record.metrics.get(metric)
