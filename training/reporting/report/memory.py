"""Memory of the ranks: over steps, and beside what was planned."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import numpy as np

from training.reporting.charts import COLOURS, Chart, add_line, figure_of, show_legend
from training.reporting.report.marks import add_bands
from training.reporting.report.steps import by_stage
from training.reporting.summary import RunSummary

_GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """One training stage; numbers in bytes, None where nothing was measured or planned."""

    stage: str
    planned_bytes: float | None
    """Of rank 0's device, at the highest."""
    device_bytes: float | None
    """The most of any rank's device."""
    device_rank: int | None
    host_bytes: float | None
    host_rank: int | None
    held_bytes: dict[str, int]
    """Of rank 0 between steps: weights, gradients, optimizer."""


def memory_of_stages(summary: RunSummary) -> list[StageMemory]:
    """Return the memory of each training stage of which something is known."""
    stages = []
    for stage in summary.stages:
        mine = [record for record in summary.memory if record.stage == stage.name]
        peaks = [
            (record.peak_memory_bytes, 0)
            for record in summary.events
            if record.stage == stage.name and record.peak_memory_bytes is not None
        ]
        peaks += [(r.device_bytes, r.device_rank or 0) for r in mine if r.device_bytes is not None]
        device = max(peaks, default=(None, None))
        host = max(mine, key=lambda record: record.host_bytes, default=None)
        planned = summary.plan[stage.name].memory_bytes if stage.name in summary.plan else None
        if mine or peaks or planned is not None:
            stages.append(
                StageMemory(
                    stage=stage.name,
                    planned_bytes=planned,
                    device_bytes=device[0],
                    device_rank=device[1],
                    host_bytes=host.host_bytes if host else None,
                    host_rank=host.host_rank if host else None,
                    held_bytes=mine[-1].held_bytes if mine else {},
                )
            )
    return stages


def memory_chart(summary: RunSummary) -> Iterator[Chart]:
    """Give the chart of memory over steps, if there are records of it; beside the plan where devices were measured."""
    records = summary.memory
    if not records:
        return
    figure = figure_of()
    has_device = any(record.device_bytes is not None for record in records)
    parts: list[tuple[str, str, list[float]]] = [("host, fullest rank", COLOURS[5], [r.host_bytes for r in records])]
    if has_device:
        device = [np.nan if record.device_bytes is None else record.device_bytes for record in records]
        parts.insert(0, ("device, fullest rank", COLOURS[0], device))
    steps = np.array([record.step for record in records], dtype=np.float64)
    for name, colour, values in parts:
        add_line(figure, steps, np.array(values) / _GIB, name=name, line={"color": colour, "width": 1.5})
    stages = by_stage(summary.steps)
    for stage in stages:
        if has_device and stage.stage in summary.plan:
            planned = summary.plan[stage.stage].memory_bytes / _GIB
            figure.add_scatter(
                x=[int(stage.steps[0]), int(stage.steps[-1])],
                y=[planned, planned],
                mode="lines",
                name="planned, device of rank 0",
                showlegend=stage is stages[0],
                hovertext=escape(stage.stage),
                line={"color": COLOURS[1], "dash": "dash", "width": 1.5},
            )
    add_bands(figure, stages)
    figure.update_yaxes(rangemode="tozero")
    show_legend(figure)
    note = "Device: the most that tensors took since the training stage began. Host: the resident set of the process."
    yield Chart(name="memory", title="memory of the fullest rank, GiB", note=note, figure=figure)
