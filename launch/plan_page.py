"""A plan as one HTML page that needs no network: memory, time, schedule, finish date, and the layouts of a search."""

from dataclasses import dataclass, fields
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from launch.plan_text import plan_text
from training.durable_files import write_durably
from training.parallel.schedule import Kind, make_schedule
from training.parallel.simulate import unit_time
from training.planner.goodput_plan import GoodputPlan
from training.planner.run_plan import RunPlan, StagePlan
from training.planner.search import SearchResult
from training.planner.stage_memory import StageMemory
from training.reporting.charts import chart_html, figure_of
from training.reporting.formatting import count
from training.reporting.pages import render_page

_GIB = 2**30
_MOST_ACTIONS = 3000
"""Passes of a schedule that a browser still draws smoothly."""
_FORWARD, _BACKWARD = "#3b82f6", "#f59e0b"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    charts: list[Markup]


def write_plan_page(path: Path, plan: RunPlan, found: SearchResult | None) -> None:
    """Write the page, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    sections = [
        Section(
            f"stage-{number}",
            f"Training stage {stage.training_stage}",
            [
                _chart(f"memory-{number}", _memory(stage)),
                _chart(f"time-{number}", _time(stage)),
                *([_chart(f"schedule-{number}", _schedule(stage))] if stage.job.split.pipeline > 1 else []),
            ],
        )
        for number, stage in enumerate(plan.stages)
    ]
    if plan.goodput is not None:
        charts = [_chart("finish", _finish(plan.goodput)), _chart("spent", _spent(plan.goodput))]
        sections.append(Section("goodput", "Failures and the finish date", charts))
    if found is not None and found.ranked:
        sections.append(Section("search", "Layouts", [_chart("search", _layouts(found))]))
    page = render_page(
        "plan.html.j2",
        name=plan.name,
        facts={
            "devices": f"{plan.num_devices:,} {plan.device}",
            "parameters": count(plan.num_parameters),
            "active": count(plan.num_active_parameters),
            "tokens": count(sum(stage.tokens for stage in plan.stages)),
        },
        sections=sections,
        text=plan_text(plan),
        plotly_js=Markup(get_plotlyjs()),
    )
    write_durably(path, page)


def _chart(name: str, figure: go.Figure) -> Markup:
    return Markup(chart_html(name, figure))


def _memory(stage: StagePlan) -> go.Figure:
    figure = figure_of("memory of a rank at the highest, GiB, by pipeline stage")
    places = list(range(len(stage.memory)))
    for field in fields(StageMemory):
        sizes = [dict(memory.largest()).get(field.name.removesuffix("_bytes"), 0.0) / _GIB for memory in stage.memory]
        if max(sizes) > 0:
            figure.add_bar(x=places, y=sizes, name=field.name.removesuffix("_bytes"))
    available = stage.verdict.memory_bytes / _GIB
    figure.add_hline(y=available, line={"dash": "dash", "color": "#dc2626"}, annotation={"text": "the device has"})
    figure.update_layout(barmode="stack", showlegend=True, yaxis_range=[0, 1.15 * max(available, _most_gib(stage))])
    return figure


def _most_gib(stage: StagePlan) -> float:
    return max(memory.total_bytes for memory in stage.memory) / _GIB


def _time(stage: StagePlan) -> go.Figure:
    figure = figure_of(f"where the {stage.time.seconds:.3g} s of a step go, on the busiest pipeline stage, seconds")
    parts = {field.name: getattr(stage.time.passes, field.name) for field in fields(stage.time.passes)}
    parts |= {
        "bubble": stage.time.bubble_seconds,
        "replicas at the end": stage.time.data_seconds,
        "update": stage.time.optimizer_seconds,
        "other": stage.time.other_seconds,
    }
    shown = {name: seconds for name, seconds in parts.items() if seconds > 0}
    figure.add_bar(x=list(shown.values()), y=list(shown), orientation="h")
    figure.update_layout(hovermode="closest")
    return figure


def _schedule(stage: StagePlan) -> go.Figure:
    """Return the first micro-batches of the schedule, drawn with equal chunks and backward twice the forward."""
    split = stage.job.split
    most = max(1, _MOST_ACTIONS // (2 * split.pipeline * split.chunks_per_rank))
    shown = min(stage.job.batch.accumulation, most)
    if split.chunks_per_rank > 1 and shown < stage.job.batch.accumulation:
        shown = max(split.pipeline, shown // split.pipeline * split.pipeline)  # equal rounds
    schedule = make_schedule(
        "1f1b" if split.chunks_per_rank == 1 else "interleaved",
        num_pipeline_stages=split.pipeline,
        chunks_per_rank=split.chunks_per_rank,
        num_micro_batches=shown,
    )
    figure = figure_of(f"schedule of the first {shown} of {stage.job.batch.accumulation} micro-batches, equal chunks")
    spans = [(place, span) for place, row in enumerate(unit_time(schedule).spans) for span in row]
    for kind, colour in ((Kind.forward, _FORWARD), (Kind.backward, _BACKWARD)):
        mine = [(place, span) for place, span in spans if span.action.kind is kind]
        figure.add_bar(
            x=[span.end_seconds - span.start_seconds for _, span in mine],
            y=[place for place, _ in mine],
            base=[span.start_seconds for _, span in mine],
            text=[str(span.action) for _, span in mine],
            orientation="h",
            name=kind.name,
            marker={"color": colour, "line": {"width": 0.5, "color": "#888"}},
        )
    figure.update_layout(barmode="overlay", showlegend=True, hovermode="closest")
    figure.update_yaxes(title="pipeline stage", autorange="reversed")
    return figure


def _finish(goodput: GoodputPlan) -> go.Figure:
    figure = figure_of("probability that the run is done, %, by days from the start")
    figure.add_scatter(x=list(goodput.days_at), y=[5 * index for index in range(len(goodput.days_at))], mode="lines")
    return figure


def _spent(goodput: GoodputPlan) -> go.Figure:
    figure = figure_of("days that do not train, by what they go to")
    lost = {entry.replace("_", " "): days for entry, days in goodput.days_spent.items() if entry != "compute" and days}
    figure.add_bar(x=list(lost.values()), y=list(lost), orientation="h")
    figure.update_layout(hovermode="closest")
    return figure


def _layouts(found: SearchResult) -> go.Figure:
    figure = figure_of("layouts that fit: tokens/s by GiB of the fullest rank; the front is marked")
    front = set(map(id, found.pareto()))
    for name, ours in (("an engine runs it", True), ("planned only", False)):
        mine = [candidate for candidate in found.ranked if candidate.runs_today is ours]
        if mine:
            figure.add_scatter(
                x=[candidate.verdict.needed_bytes / _GIB for candidate in mine],
                y=[candidate.tokens_per_second for candidate in mine],
                text=[escape(candidate.layout) for candidate in mine],
                mode="markers",
                marker={"size": [10 if id(candidate) in front else 5 for candidate in mine]},
                name=name,
            )
    figure.update_layout(showlegend=True, hovermode="closest", height=420)
    return figure
