"""Where the wall time of the run went: one bar and one table, from the goodput ledger; and what it cost so far."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.reporting.charts import Chart, figure_of
from training.reporting.goodput import Goodput, Spent
from training.reporting.records import StartRecord
from training.reporting.summary import RunSummary

_COLOURS = {
    Spent.compute: "#16a34a",
    Spent.data: "#ec4899",
    Spent.checkpoint: "#06b6d4",
    Spent.evaluation: "#3b82f6",
    Spent.stage_change: "#818cf8",
    Spent.other: "#94a3b8",
    Spent.skipped: "#d97706",
    Spent.undone: "#dc2626",
    Spent.start: "#a855f7",
    Spent.restart: "#f97316",
    Spent.ending: "#b91c1c",
    Spent.down: "#64748b",
    Spent.unaccounted: "#a8a29e",
}
_LEAST_SHARE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What the run has used of devices so far."""

    device_hours: float
    """Of all attempts: the ranks times the time from the launch to the end. Nothing is counted in between."""
    price: float | None
    """Of them; None where the config has no price for a device."""


def cost(goodput: Goodput | None, starts: Sequence[StartRecord]) -> Cost | None:
    """Return what all attempts used; None where no attempt wrote how it began."""
    if goodput is None:
        return None
    by_attempt = {start.attempt: start for start in starts}
    hours, price = 0.0, 0.0
    for time in goodput.attempts:
        start = by_attempt[time.attempt]
        mine = start.world_size * (time.end_seconds - time.begin_seconds - time.spent[Spent.down]) / 3600
        hours += mine
        price = price + mine * start.price_per_hour if start.price_per_hour is not None else float("nan")
    return Cost(device_hours=hours, price=price if price == price else None)


def time_rows(goodput: Goodput) -> list[tuple[str, float, float]]:
    """Return what time went to, its seconds and its share of the wall time; what took no time is left out."""
    wall = goodput.wall_seconds or 1.0
    return [(what, s, s / wall) for what, s in goodput.spent.items() if abs(s) / wall > _LEAST_SHARE]


def time_chart(summary: RunSummary) -> Iterator[Chart]:
    """Give the bar of all categories, one row for the run and one for each of its newest attempts."""
    goodput = summary.goodput
    if goodput is None or not goodput.wall_seconds:
        return
    rows = {"the run": goodput.spent}
    if len(goodput.attempts) > 1:
        rows |= {f"attempt {time.attempt + 1}": time.spent for time in goodput.attempts[-8:]}
    yield time_bars(rows, title="share of the wall time, %")


def time_bars(rows: dict[str, dict[Spent, float]], *, title: str) -> Chart:
    """Return a chart with one stacked bar of shares per row; seconds appear on hovering.

    Args:
        rows: label, already escaped -> seconds of each category.
        title: of the chart.
    """
    figure = figure_of()
    walls = {label: sum(spent.values()) or 1.0 for label, spent in rows.items()}
    for what in Spent:
        if any(abs(spent[what]) / walls[label] > _LEAST_SHARE for label, spent in rows.items()):
            figure.add_bar(
                y=list(rows),
                x=[100 * max(0.0, spent[what]) / walls[label] for label, spent in rows.items()],
                customdata=[spent[what] for spent in rows.values()],
                orientation="h",
                name=str(what.value),
                marker={"color": _COLOURS[what]},
                hovertemplate=f"{what.value}: %{{x:.1f}} %, %{{customdata:,.1f}} s<extra></extra>",
            )
    figure.update_layout(
        barmode="stack", showlegend=True, hovermode="closest", height=130 + 28 * len(rows), margin={"t": 8, "b": 24}
    )
    figure.update_layout(legend={"y": -0.25, "yanchor": "top", "traceorder": "normal"})
    figure.update_xaxes(range=[0, 100])
    figure.update_yaxes(autorange="reversed", type="category")
    return Chart(name="time", title=title, figure=figure, by_step=False)
