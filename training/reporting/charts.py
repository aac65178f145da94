"""The report's charts, as plotly figures: no chart asks the network for anything, and colours suit light and dark."""

from collections.abc import Callable
from html import escape

import plotly.graph_objects as go

from training.reporting.evaluations import occasion
from training.reporting.records import EvalRecord, StepRecord
from training.reporting.summary import RunSummary

_STAGE_COLOURS = ["#3b82f6", "#f59e0b", "#10b981", "#a855f7", "#ec4899", "#06b6d4", "#84cc16", "#f97316"]
"""One colour per training stage, readable on white and on near-black."""
_GATE_COLOURS = {"promote": "#16a34a", "block": "#dc2626", "ask": "#d97706", "more_items": "#64748b"}
_GATE_MARKS = {"promote": "✓ gate", "block": "✕ BLOCKED", "ask": "? a person", "more_items": "… more items"}
_MAX_POINTS = 2000
"""Points per curve that a phone still draws smoothly."""
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
}


_HELD_OUT = {
    "bits_per_byte": "bits per byte",
    "assistant_nats_per_token": "nats per token of what the assistant says",
}
"""Metric -> its name in a title."""


def charts_html(summary: RunSummary) -> dict[str, str]:
    """Return the <div> of each chart by name; plotly.js itself must stand in the page before them."""
    figures: dict[str, go.Figure] = {}
    if summary.steps:
        figures["loss"] = _curve(summary, "loss, nats per token, by optimizer step", lambda step: step.loss)
        for metric, title in _HELD_OUT.items():
            if any(_measured(record, metric) is not None for record in summary.evals):
                figures[metric] = held_out(summary, metric, f"held-out {title}, by optimizer step")
        figures["learning_rate"] = _curve(summary, "learning rate", lambda step: step.lr)
        figures["grad_norm"] = _curve(summary, "gradient norm before clipping", lambda step: step.grad_norm)
        figures["tokens_per_second"] = _curve(summary, "tokens per second", lambda step: step.tokens_per_second)
        figures["mfu"] = _curve(summary, "MFU, %", lambda step: 100 * step.mfu)
        if any(step.experts for step in summary.steps):
            figures["expert_load"] = _curve(
                summary,
                "busiest expert's tokens over the mean, 1 is even",
                lambda step: _of_experts(step, "worst_load"),
            )
            figures["router_entropy"] = _curve(
                summary, "router entropy, share of even scores'", lambda step: _of_experts(step, "entropy_of_even")
            )
        _add_gates(figures["loss"], summary)
        figures["loss"].update_layout(showlegend=True)
        for name in ("tokens_per_second", "mfu"):
            figures[name].update_yaxes(rangemode="tozero")
    return {name: chart_html(name, figure) for name, figure in figures.items()}


def chart_html(name: str, figure: go.Figure) -> str:
    """Return the <div> of one chart; plotly.js itself must stand in the page before it."""
    return figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=f"chart-{name}")


def thin(points: list[tuple[int, float]], max_points: int = _MAX_POINTS) -> list[tuple[int, float]]:
    """Return at most `max_points` of the points: of each stretch the lowest and the highest, so spikes stay."""
    if len(points) <= max_points:
        return points
    num_buckets = max_points // 2
    kept: list[tuple[int, float]] = []
    for bucket in range(num_buckets):
        stretch = points[bucket * len(points) // num_buckets : (bucket + 1) * len(points) // num_buckets]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def figure_of(title: str) -> go.Figure:
    """Return an empty chart in the report's style."""
    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "x": 0, "xref": "paper", "font": {"size": 14}},
        height=300,
        margin={"l": 48, "r": 12, "t": 56, "b": 36},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#888"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        showlegend=False,
        hovermode="x unified",
        dragmode=False,  # else a finger on a chart cannot scroll the page; the mode bar offers zoom
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin=True)
    return figure


def _curve(summary: RunSummary, title: str, value: Callable[[StepRecord], float]) -> go.Figure:
    """Return a chart over steps with one colour and one shaded band per training stage."""
    figure = figure_of(title)
    for number, stage in enumerate(dict.fromkeys(step.stage for step in summary.steps)):
        colour = _STAGE_COLOURS[number % len(_STAGE_COLOURS)]
        points = thin([(step.step, value(step)) for step in summary.steps if step.stage == stage])
        figure.add_scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="lines" if len(points) > 1 else "markers",
            name=escape(stage),
            line={"color": colour, "width": 1.5},
        )
    _add_bands(figure, summary)
    return figure


def _of_experts(step: StepRecord, name: str) -> float:
    """Return a number of a step's experts; NaN, which is not drawn, where it has none."""
    return (step.experts or {}).get(name, float("nan"))


def _add_bands(figure: go.Figure, summary: RunSummary, *, named: bool = False) -> None:
    """Shade each training stage's steps, and write its name there if that is asked for."""
    for number, stage in enumerate(dict.fromkeys(step.stage for step in summary.steps)):
        steps = [step.step for step in summary.steps if step.stage == stage]
        name = {"text": escape(stage), "font": {"size": 11}} if named else None
        figure.add_vrect(
            x0=steps[0] - 0.5,
            x1=steps[-1] + 0.5,
            fillcolor=_STAGE_COLOURS[number % len(_STAGE_COLOURS)],
            opacity=0.07,
            line_width=0,
            annotation=name,
            annotation_position="top left" if named else None,
        )


def _add_gates(figure: go.Figure, summary: RunSummary) -> None:
    for gate in summary.gates:
        mark = _GATE_MARKS.get(gate.decision, gate.decision)
        colour = _GATE_COLOURS.get(gate.decision, "#888")
        figure.add_vline(
            x=gate.step + 0.5,
            line={"color": colour, "dash": "dash", "width": 1.5},
            annotation={"text": mark, "font": {"color": colour, "size": 11}, "textangle": -90, "xanchor": "right"},
        )


def held_out(summary: RunSummary, metric: str, title: str) -> go.Figure:
    """Return a chart over steps: every evaluation is a point, those at a training stage's end are larger."""
    figure = figure_of(title)
    evals = [(record, value) for record in summary.evals if (value := _measured(record, metric)) is not None]
    suites = list(dict.fromkeys(record.suite for record, _ in evals))
    for suite in suites:
        records, values = zip(*[(record, value) for record, value in evals if record.suite == suite], strict=True)
        figure.add_scatter(
            x=[record.step for record in records],
            y=values,
            text=["" if record.in_between else f"{value:.3f}" for record, value in zip(records, values, strict=True)],
            hovertext=[escape(occasion(record)) for record in records],
            marker={"size": [5 if record.in_between else 9 for record in records]},
            mode="lines+markers+text",
            textposition="top right",
            cliponaxis=False,
            name=escape(suite),
        )
    _add_bands(figure, summary, named=True)
    figure.update_layout(showlegend=len(suites) > 1, height=240, margin_r=44)
    return figure


def _measured(record: EvalRecord, metric: str) -> float | None:
    return record.bits_per_byte if metric == "bits_per_byte" else record.metrics.get(metric)
