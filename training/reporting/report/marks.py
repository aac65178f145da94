"""What is marked on curves over steps: training stages as bands, gates as lines, incidents as triangles."""

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from training.reporting.charts import BAD, GOOD, SOFT, WARNING, Numbers
from training.reporting.records import GateRecord, IncidentRecord
from training.reporting.report.ahead import ExpectedEnd
from training.reporting.report.steps import StageSteps

MOST_MARKS = 500
"""Incidents on a chart; the newest are."""
_GATE_COLOURS = {"promote": GOOD, "block": BAD, "ask": WARNING, "more_items": SOFT}
_GATE_MARKS = {"promote": "✓ gate", "block": "✕ BLOCKED", "ask": "? a person", "more_items": "… more items"}
_LONGEST_MESSAGE = 160


def add_bands(figure: go.Figure, stages: Sequence[StageSteps], *, named: bool = False) -> None:
    """Shade each training stage's steps, and write its name there if that is asked for."""
    for stage in stages:
        # As shapes of their own: plotly's add_vrect adds an annotation "new text" where none is asked for.
        figure.add_shape(
            type="rect",
            xref="x",
            yref="paper",
            x0=stage.steps[0] - 0.5,
            x1=stage.steps[-1] + 0.5,
            y0=0,
            y1=1,
            fillcolor=stage.colour,
            opacity=0.07,
            line_width=0,
            layer="below",
        )
        if named:
            figure.add_annotation(
                text=escape(stage.stage),
                font={"size": 11},
                x=stage.steps[0] - 0.5,
                y=0,
                xref="x",
                yref="paper",
                xanchor="left",
                yanchor="bottom",
                showarrow=False,
            )


def add_gates(figure: go.Figure, gates: Sequence[GateRecord]) -> None:
    """Draw a line where each gate decided, with what it decided."""
    for gate in gates:
        colour = _GATE_COLOURS.get(gate.decision, "#888")
        x = gate.step + 0.5
        figure.add_shape(
            type="line",
            xref="x",
            yref="paper",
            x0=x,
            x1=x,
            y0=0,
            y1=1,
            line={"color": colour, "dash": "dash", "width": 1.5},
        )
        figure.add_annotation(
            text=_GATE_MARKS.get(gate.decision, escape(gate.decision)),
            font={"color": colour, "size": 11},
            x=x,
            y=1,
            xref="x",
            yref="paper",
            xanchor="right",
            yanchor="top",
            textangle=-90,
            showarrow=False,
        )


def add_incidents(figure: go.Figure, incidents: Sequence[IncidentRecord], steps: Numbers, values: Numbers) -> None:
    """Mark incidents on a curve, at its value of their step or of the one before; their words appear on hovering.

    Args:
        figure: has the curve.
        incidents: in any order.
        steps: of the curve, rising.
        values: one each.
    """
    shown = list(incidents)[-MOST_MARKS:]
    if not shown or not len(steps):
        return
    places = [max(0, int(steps.searchsorted(incident.step, side="right")) - 1) for incident in shown]
    figure.add_scatter(
        x=[incident.step for incident in shown],
        y=values[places].tolist(),
        mode="markers",
        name="incidents",
        marker={"symbol": "triangle-down", "size": 11, "color": BAD, "line": {"color": "white", "width": 1}},
        text=[escape(f"{incident.what}: {_short(incident.message)}") for incident in shown],
        hovertemplate="%{text}<extra></extra>",
    )


def add_expected(figure: go.Figure, end: ExpectedEnd) -> None:
    """Mark the loss that is expected at a training stage's end, with its band."""
    expected = end.expected
    figure.add_scatter(
        x=[end.step],
        y=[expected.loss],
        error_y={"array": [expected.high - expected.loss], "arrayminus": [expected.loss - expected.low]},
        mode="markers",
        name="expected at the stage's end",
        marker={"symbol": "diamond-open", "size": 10, "color": SOFT},
    )


def _short(message: str) -> str:
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"
