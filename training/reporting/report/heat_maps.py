"""Layers over steps, and experts of each block, as heat maps: where in the model something is out of line."""

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from training.reporting.charts import Chart, Choice, Numbers, figure_of
from training.reporting.records import ExpertsRecord, LayersRecord
from training.reporting.summary import RunSummary

_MOST_COLUMNS = 250
"""Steps of the layers' heat map; more are not told apart."""
_MOST_LOOKS = 12
"""Steps whose experts can be looked at."""
_PIXELS_PER_ROW = 16
_SCALE = "Viridis"


def heat_maps(summary: RunSummary) -> Iterator[Chart]:
    """Give the heat maps that the run has records for."""
    if summary.layers:
        yield _layers(summary.layers)
    if summary.experts:
        yield _experts(summary.experts)


def spread(records: Sequence[LayersRecord], most: int) -> list[LayersRecord]:
    """Return at most `most` of the records, the first and the last among them."""
    return [records[place] for place in _spread(len(records), most)]


def _spread(number: int, most: int) -> list[int]:
    return sorted(set(np.linspace(0, number - 1, min(number, most)).round().astype(int).tolist()))


def _layers(records: Sequence[LayersRecord]) -> Chart:
    shown = spread(records, _MOST_COLUMNS)
    names = list(dict.fromkeys(name for record in shown for name in record.names))
    quantities = {
        "update ÷ weight": [_ratios(record) for record in shown],
        "gradient norm before clipping": [record.grad_norms for record in shown],
        "weight norm": [record.weight_norms for record in shown],
        "update norm": [record.update_norms for record in shown],
    }
    figure = figure_of()
    for label, columns in quantities.items():
        values = _grid(names, shown, columns)
        # Colours are of logarithms: what is healthy in one layer is a thousand times too much in another.
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithms = np.where(values > 0, np.log10(values), np.nan)
        figure.add_heatmap(
            x=[record.step for record in shown],
            y=[escape(name) for name in names],
            z=_rows(logarithms, 4),
            customdata=_rows(values, 4),
            name=label,
            colorscale=_SCALE,
            colorbar={"thickness": 8, "tickprefix": "10<sup>", "ticksuffix": "</sup>", "dtick": 1, "len": 1},
            hovertemplate=f"%{{y}}, step %{{x}}<br>{label} %{{customdata:.3g}}<extra></extra>",
            visible=label == "update ÷ weight",
        )
    figure.update_layout(hovermode="closest", height=90 + _PIXELS_PER_ROW * min(len(names), 40), margin_r=0)
    figure.update_yaxes(autorange="reversed", type="category", tickfont={"size": 10})
    note = (
        "Update ÷ weight: the norm of what a step added over the norm of the weights before it; with Adam and a rate "
        "that suits, about 10⁻³. A layer that stands out by a decade or two learns too fast, or not at all."
    )
    choices = [Choice(label=label, traces=[place]) for place, label in enumerate(quantities)]
    return Chart(name="layers", title="layers over steps", note=note, figure=figure, choices=choices)


def _experts(records: Sequence[ExpertsRecord]) -> Chart:
    shown = [records[place] for place in reversed(_spread(len(records), _MOST_LOOKS))]
    figure = figure_of()
    for number, record in enumerate(shown):
        loads = [np.array(block, dtype=np.float64) for block in record.loads]
        width = max((len(block) for block in loads), default=0)
        shares = np.full((len(loads), width), np.nan)
        for block, load in enumerate(loads):
            mean = load.mean() if len(load) else 0.0
            shares[block, : len(load)] = load / mean if mean else np.nan
        figure.add_heatmap(
            z=_rows(shares, 3),
            colorscale=_SCALE,
            zmin=0,
            zmax=max(2.0, float(np.nanmax(shares)) if np.isfinite(shares).any() else 2.0),
            colorbar={"thickness": 8, "len": 1},
            hovertemplate="block %{y}, expert %{x}<br>%{z:.2f} times the mean<extra></extra>",
            visible=number == 0,
        )
    blocks = max(len(record.loads) for record in shown)
    figure.update_layout(hovermode="closest", height=90 + _PIXELS_PER_ROW * min(max(blocks, 4), 40), margin_r=0)
    figure.update_yaxes(autorange="reversed", title="block")
    figure.update_xaxes(title="expert")
    return Chart(
        name="experts",
        title="tokens of each expert over its block's mean, 1 is even",
        note="Blocks are those with experts, counted from 0. Dark blue: an expert that hardly anything is sent to.",
        figure=figure,
        by_step=False,
        choices=[
            Choice(label=f"step {record.step} ({record.stage})", traces=[number]) for number, record in enumerate(shown)
        ],
    )


def _ratios(record: LayersRecord) -> list[float]:
    pairs = zip(record.update_norms, record.weight_norms, strict=False)
    return [update / weight if weight else float("nan") for update, weight in pairs]


def _grid(names: Sequence[str], records: Sequence[LayersRecord], columns: Sequence[Sequence[float]]) -> Numbers:
    """Return layer × step; NaN where a record has not the layer."""
    rows = {name: row for row, name in enumerate(names)}
    grid = np.full((len(names), len(records)), np.nan)
    for column, (record, values) in enumerate(zip(records, columns, strict=True)):
        for name, value in zip(record.names, values, strict=False):
            grid[rows[name], column] = value
    return grid


def _rows(values: Numbers, digits: int) -> list[list[float | None]]:
    """Return rows of few digits, which are a third of the page's bytes."""
    return [[float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in row] for row in values.tolist()]
