"""The report's curves: numbers of step records over the optimizer step, a colour and a band per training stage."""

from collections.abc import Callable, Iterator, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from training.reporting.charts import Chart, Numbers, add_line, figure_of, running_mean, show_legend
from training.reporting.records import StepRecord
from training.reporting.report.ahead import ExpectedEnd
from training.reporting.report.marks import add_bands, add_expected, add_gates, add_incidents
from training.reporting.report.steps import StageSteps, by_stage
from training.reporting.summary import RunSummary

_POINTS_OF_ALL_STAGES = 6000
"""Per curve; a training stage has an equal share of it, 2000 at most."""
_MEAN_STEPS = 50
"""Steps of the running mean that is drawn over a noisy curve."""

Value = Callable[[StepRecord], float | None]

_UTILISATION = (
    "MFU = model FLOPs of the step ÷ (wall time × ranks × peak). Model FLOPs: a multiply-add is 2 FLOPs, backward "
    "costs twice the forward, the embedding look-up is free, attention is causal (each position meets half of the "
    "sequence on average), and nothing that is computed again counts. HFU (dotted) counts what is recomputed in "
    "backward too."
)


def curves(summary: RunSummary, end: ExpectedEnd | None) -> Iterator[Chart]:
    """Give the charts that the run's steps have numbers for.

    Args:
        summary: of the run.
        end: what loss is expected, if anything is.
    """
    stages = by_stage(summary.steps)
    if not stages:
        return
    yield _loss(summary, stages, end)
    yield from _of_all_runs(summary, stages)
    if any(step.preference for step in summary.steps):
        for key, title in (("accuracy", "pairs ranked right, share"), ("margin", "reward margin, nats times beta")):
            yield _chart(stages, f"preference_{key}", title, lambda step, key=key: (step.preference or {}).get(key))
    if any(step.experts for step in summary.steps):
        yield from _of_experts(stages)


def _of_all_runs(summary: RunSummary, stages: Sequence[StageSteps]) -> Iterator[Chart]:
    steps = summary.steps
    if any(step.later_loss is not None for step in steps):
        title = "loss of multi-token prediction, nats per token"
        yield _chart(stages, "later_loss", title, lambda step: step.later_loss)
    yield _chart(stages, "learning_rate", "learning rate", lambda step: step.lr)
    clipped: Value = lambda step: step.clipped_grad_norm  # noqa: E731
    is_clipped = any(step.clipped_grad_norm is not None for step in steps)
    yield _chart(
        stages,
        "grad_norm",
        "gradient norm before clipping" + (" and after (dotted)" if is_clipped else ""),
        lambda step: step.grad_norm,
        dotted=clipped if is_clipped else None,
    )
    yield _chart(
        stages, "tokens_per_second", "tokens per second, all ranks", lambda step: step.tokens_per_second, zero=True
    )
    if any(step.tokens_per_second_per_device is not None for step in steps):
        title = "tokens per second and device"
        yield _chart(
            stages, "tokens_per_second_per_device", title, lambda step: step.tokens_per_second_per_device, zero=True
        )
    has_hfu = any(step.hfu is not None for step in steps)
    yield _chart(
        stages,
        "mfu",
        "MFU and HFU (dotted), %" if has_hfu else "MFU, %",
        lambda step: 100 * step.mfu,
        dotted=(lambda step: None if step.hfu is None else 100 * step.hfu) if has_hfu else None,
        zero=True,
        note=" ".join([_UTILISATION, *_peaks(summary)]),
    )
    if any(step.waited_seconds is not None for step in steps):
        yield _step_time(stages)
    if any(step.bubble is not None for step in steps):
        title = "pipeline bubble as measured, % of forwards and backwards"
        yield _chart(
            stages, "bubble", title, lambda step: None if step.bubble is None else 100 * step.bubble, zero=True
        )


def _of_experts(stages: Sequence[StageSteps]) -> Iterator[Chart]:
    for key, name, title in (
        ("worst_load", "expert_load", "busiest expert's tokens over the mean, 1 is even"),
        ("worst_rank_load", "rank_load", "busiest rank's tokens over the mean, 1 is even"),
        ("entropy_of_even", "router_entropy", "router entropy, share of even scores'"),
        ("dead", "dead_experts", "experts without a token, all blocks"),
    ):
        yield _chart(stages, name, title, lambda step, key=key: (step.experts or {}).get(key))


def _peaks(summary: RunSummary) -> list[str]:
    """Return the peaks that the starts of the run went by, in sentences."""
    peaks = dict.fromkeys((start.peak_flops_per_second, start.peak_source) for start in summary.starts)
    return [f"Peak of one device: {flops / 1e12:.4g} TFLOP/s ({source})." for flops, source in list(peaks)[-3:]]


def _loss(summary: RunSummary, stages: Sequence[StageSteps], end: ExpectedEnd | None) -> Chart:
    figure = _curve(stages, lambda step: step.loss)
    add_gates(figure, summary.gates)
    add_incidents(
        figure,
        summary.incidents,
        np.array([step.step for step in summary.steps], dtype=np.float64),
        np.array([step.loss for step in summary.steps], dtype=np.float64),
    )
    note = ""
    if end is not None:
        add_expected(figure, end)
        note = "Expected: a power law of the tokens of this training stage, fitted to its loss so far, and its band."
    show_legend(figure)
    figure.update_layout(height=340)
    return Chart(name="loss", title="loss, nats per token", note=note, figure=figure)


def _step_time(stages: Sequence[StageSteps]) -> Chart:
    """Return the parts of a step's wall time, one upon the other."""
    figure = figure_of()
    parts: list[tuple[str, str, Value]] = [
        ("computing", "#3b82f6", lambda s: s.seconds - (s.waited_seconds or 0.0) - (s.data_seconds or 0.0)),
        ("waiting for ranks", "#f59e0b", lambda s: s.waited_seconds or 0.0),
        ("waiting for data", "#ec4899", lambda s: s.data_seconds or 0.0),
    ]
    for stage in stages:
        for name, colour, value in parts:
            add_line(
                figure,
                *_means(stage.steps, stage.column(value)),
                name=name,
                line={"color": colour, "width": 0.5},
                stackgroup=escape(stage.stage),
                legendgroup=name,
                showlegend=stage is stages[0],
            )
    show_legend(figure)
    return Chart(name="step_time", title="where a step's seconds go, on rank 0", figure=figure)


def _means(steps: Numbers, values: Numbers, most_points: int = 300) -> tuple[Numbers, Numbers]:
    """Return means of equal stretches: parts that are drawn one upon the other need the same steps."""
    edges = np.arange(most_points) * len(steps) // most_points if len(steps) > most_points else np.arange(len(steps))
    counts = np.diff(np.append(edges, len(steps)))
    return steps[edges], np.add.reduceat(values, edges) / counts


def _chart(
    stages: Sequence[StageSteps],
    name: str,
    title: str,
    value: Value,
    *,
    dotted: Value | None = None,
    zero: bool = False,
    note: str = "",
) -> Chart:
    figure = _curve(stages, value, dotted=dotted)
    if zero:
        figure.update_yaxes(rangemode="tozero")
    return Chart(name=name, title=title, note=note, figure=figure)


def _curve(stages: Sequence[StageSteps], value: Value, *, dotted: Value | None = None) -> go.Figure:
    """Return a curve; a long one is faint, with its running mean over it."""
    figure = figure_of()
    most = max(200, min(2000, _POINTS_OF_ALL_STAGES // len(stages)))
    for stage in stages:
        y, name = stage.column(value), escape(stage.stage)
        is_long = len(y) > 4 * _MEAN_STEPS
        add_line(
            figure,
            stage.steps,
            y,
            name=name,
            most_points=most,
            legendgroup=name,
            opacity=0.4 if is_long else 1.0,
            line={"color": stage.colour, "width": 1.0 if is_long else 1.5},
        )
        if is_long:
            mean = running_mean(y, max(_MEAN_STEPS, len(y) // 100))
            add_line(
                figure,
                stage.steps,
                mean,
                name=f"{name}, running mean",
                most_points=400,
                legendgroup=name,
                showlegend=False,
                line={"color": stage.colour, "width": 2},
            )
        if dotted is not None:
            add_line(
                figure,
                stage.steps,
                stage.column(dotted),
                name=f"{name} (dotted)",
                most_points=min(most, 400) if is_long else most,
                line={"color": stage.colour, "width": 1.5, "dash": "dot"},
            )
    add_bands(figure, stages)
    return figure
