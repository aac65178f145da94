"""Charts in one style, as plotly figures: none asks the network for anything, and colours suit light and dark."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

COLOURS = ["#3b82f6", "#f59e0b", "#10b981", "#a855f7", "#ec4899", "#06b6d4", "#84cc16", "#f97316"]
"""One after the other, for training stages or runs; readable on white and on near-black."""
GOOD, BAD, WARNING, SOFT = "#16a34a", "#dc2626", "#d97706", "#64748b"
_MOST_POINTS = 2000
"""Points per curve that a phone still draws smoothly."""
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
}

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Some of a chart's traces, to be shown in place of the others."""

    label: str
    traces: list[int]
    """Their places in the figure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A figure and what is said about it."""

    name: str
    """Its place in a page is the element chart-<name>."""
    title: str
    """With the unit."""
    figure: go.Figure
    note: str = ""
    """What a reader should know; below the title."""
    by_step: bool = True
    """Whether the x axis is the optimizer step, so that a training stage can be zoomed to."""
    choices: Sequence[Choice] = ()
    """Of them one is shown, the first to begin with; none if all traces are shown."""


def figures_json(charts: Iterable[Chart]) -> str:
    """Return the figures by name as JSON that may stand in a <script>: no text in it can end that element."""
    parts = []
    for chart in charts:
        figure = chart.figure.to_json()  # plotly's own: a number that is not finite becomes null, which is not drawn
        assert figure is not None
        choices = json.dumps([{"label": choice.label, "traces": choice.traces} for choice in chart.choices])
        by_step = "true" if chart.by_step else "false"
        parts.append(f'{json.dumps(chart.name)}:{{"figure":{figure},"byStep":{by_step},"choices":{choices}}}')
    text = "{" + ",".join(parts) + "}"
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def chart_html(name: str, figure: go.Figure) -> str:
    """Return the <div> of one chart; plotly.js itself must stand in the page before it."""
    return figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=f"chart-{name}")


def figure_of(title: str = "") -> go.Figure:
    """Return an empty chart in the style of all pages; without a title, where the page itself has one."""
    figure = go.Figure()
    figure.update_layout(
        template=go.layout.Template(),
        colorway=COLOURS,
        height=300 if title else 260,
        margin={"l": 48, "r": 12, "t": 56 if title else 10, "b": 36},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#888"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        showlegend=False,
        hovermode="x unified",
        dragmode=False,  # else a finger on a chart cannot scroll the page; the mode bar offers zoom
    )
    if title:
        figure.update_layout(title={"text": title, "x": 0, "xref": "paper", "font": {"size": 14}})
    # Only the side that an axis is on makes room for it: plotly may find no end if its last label pushes others too.
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin="bottom")
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin="left")
    return figure


def show_legend(figure: go.Figure) -> None:
    """Show the legend, above a chart without a title."""
    figure.update_layout(showlegend=True, margin_t=34, legend={"traceorder": "normal"})


def add_line(
    figure: go.Figure, x: Numbers, y: Numbers, *, name: str, most_points: int = _MOST_POINTS, **how: Any
) -> None:
    """Add a curve, thinned if it is long; a single point is a dot.

    Args:
        figure: takes it.
        x: rising.
        y: one value each; NaN is not drawn.
        name: already escaped.
        most_points: see `thin`.
        how: further words of plotly's Scatter.
    """
    x, y = thin(x, y, most_points)
    figure.add_scatter(
        x=[int(value) if value == int(value) else value for value in x.tolist()],
        y=[float(f"{value:.7g}") for value in y.tolist()],
        mode="lines" if np.isfinite(y).sum() > 1 else "markers",
        name=name,
        **how,
    )


def thin(x: Numbers, y: Numbers, most_points: int = _MOST_POINTS) -> tuple[Numbers, Numbers]:
    """Return at most `most_points` of the points: of each stretch the lowest and the highest, so spikes stay.

    Points that are not finite are left out where there are too many.
    """
    if len(x) <= most_points:
        return x, y
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    num_buckets = min(most_points // 2, max(1, len(x)))
    edges = np.arange(num_buckets + 1) * len(x) // num_buckets
    kept = [
        place
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        for place in {begin + int(np.argmin(y[begin:end])), begin + int(np.argmax(y[begin:end]))}
        if end > begin
    ]
    kept.sort()
    return x[kept], y[kept]


def running_mean(y: Numbers, num_points: int) -> Numbers:
    """Return the mean of each point and those before it, `num_points` at most; what is not finite is left out."""
    finite = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    begins = np.maximum(np.arange(len(y)) + 1 - num_points, 0)
    ends = np.arange(len(y)) + 1
    num = counts[ends] - counts[begins]
    return np.where(num > 0, (sums[ends] - sums[begins]) / np.maximum(num, 1), np.nan)
