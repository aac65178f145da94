"""Several runs side by side: curves over steps and tokens, final numbers, and the settings in which they differ."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median

import numpy as np

from training.errors import ConfigError
from training.reporting import formatting
from training.reporting.charts import COLOURS, Chart, Numbers, add_line, figure_of, running_mean, show_legend
from training.reporting.records import StepRecord
from training.reporting.report.scores import HELD_OUT
from training.reporting.report.time_lost import cost, time_bars
from training.reporting.summary import RunSummary, read_run

MOST_RUNS = len(COLOURS)
"""Runs that one page can tell apart by colour."""
_OWN_SETTINGS = ("run.id", "run.root", "resume.")
"""Beginnings of settings that say which run it is, not what it does."""
_MEAN_STEPS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """One run."""

    label: str
    """Unique among the compared ones: its id, with its folder if ids are equal."""
    colour: str
    summary: RunSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One number or setting, of each run; a dash where it has none."""

    name: str
    values: list[str]


def read_runs(directories: Sequence[Path]) -> list[ComparedRun]:
    """Return the runs to compare.

    Raises:
        ConfigError: there are too many, or one directory is no run's.
        StorageError: a file cannot be read.
    """
    if len(directories) > MOST_RUNS:
        reason = f"a page can tell {MOST_RUNS} apart by colour"
        raise ConfigError("runs", len(directories), reason, f"give {MOST_RUNS} at most")
    names = [directory.resolve().name for directory in directories]
    return [
        ComparedRun(
            label=name if names.count(name) == 1 else str(directory), colour=COLOURS[place], summary=read_run(directory)
        )
        for place, (name, directory) in enumerate(zip(names, directories, strict=True))
    ]


def comparison_charts(runs: Sequence[ComparedRun]) -> Iterator[Chart]:
    """Give the charts that the runs have numbers for."""
    yield _curves(runs, "loss", "loss, nats per token, by optimizer step", lambda step: step.step, lambda s: s.loss)
    yield _curves(runs, "loss_by_tokens", "loss, nats per token, by tokens", lambda step: step.tokens, lambda s: s.loss)
    for metric, title in HELD_OUT.items():
        if chart := _held_out(runs, metric, f"{title}, by tokens"):
            yield chart
    yield _curves(
        runs,
        "tokens_per_second",
        "tokens per second, all ranks, by optimizer step",
        lambda step: step.step,
        lambda s: s.tokens_per_second,
        zero=True,
    )
    yield _curves(runs, "mfu", "MFU, %, by optimizer step", lambda step: step.step, lambda s: 100 * s.mfu, zero=True)
    spent = {escape(run.label): run.summary.goodput.spent for run in runs if run.summary.goodput}
    if spent:
        yield time_bars(spent, title="share of the wall time, %")


def final_numbers(runs: Sequence[ComparedRun]) -> list[Row]:
    """Return how each run stands."""
    numbers: dict[str, Callable[[RunSummary], str]] = {
        "state": lambda run: run.state,
        "steps": lambda run: f"{run.steps[-1].step:,}" if run.steps else "0",
        "tokens": lambda run: formatting.count(run.tokens),
        "last loss": lambda run: f"{run.steps[-1].loss:.4f}" if run.steps else "–",
        "median tokens/s": lambda run: (
            formatting.count(median(s.tokens_per_second for s in run.steps)) if run.steps else "–"
        ),
        "median MFU": lambda run: formatting.percent(median(s.mfu for s in run.steps)) if run.steps else "–",
        "wall time": lambda run: formatting.duration(run.goodput.wall_seconds) if run.goodput else "–",
        "goodput": lambda run: formatting.percent(run.goodput.share) if run.goodput else "–",
        "device-hours": lambda run: f"{used.device_hours:,.3g}" if (used := cost(run.goodput, run.starts)) else "–",
        "price so far": lambda run: (
            f"{used.price:,.2f}" if (used := cost(run.goodput, run.starts)) and used.price is not None else "–"
        ),
        "attempts": lambda run: str(run.num_attempts),
        "incidents": lambda run: str(len(run.incidents)),
    }
    return [Row(name=name, values=[value(run.summary) for run in runs]) for name, value in numbers.items()]


def final_scores(runs: Sequence[ComparedRun]) -> list[Row]:
    """Return the numbers of each run's last evaluation of each suite."""
    last = [{record.suite: record.metrics for record in run.summary.evals} for run in runs]
    keys = dict.fromkeys((suite, metric) for suites in last for suite, metrics in suites.items() for metric in metrics)
    rows = []
    for suite, metric in keys:
        found = [suites.get(suite, {}).get(metric) for suites in last]
        rows.append(Row(name=f"{suite}: {metric}", values=["–" if v is None else f"{v:.4g}" for v in found]))
    return rows


def differing_settings(runs: Sequence[ComparedRun]) -> list[Row]:
    """Return the settings that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.summary.config if not key.startswith(_OWN_SETTINGS))
    rows = [Row(name=key, values=[run.summary.config.get(key, "–") for run in runs]) for key in keys]
    return [row for row in rows if len(set(row.values)) > 1]


def _curves(
    runs: Sequence[ComparedRun],
    name: str,
    title: str,
    x: Callable[[StepRecord], float],
    y: Callable[[StepRecord], float],
    *,
    zero: bool = False,
) -> Chart:
    """Return a curve of each run; of a long one the running mean."""
    figure = figure_of()
    for run in runs:
        steps = run.summary.steps
        at, values = _column(steps, x), _column(steps, y)
        if len(values) > 4 * _MEAN_STEPS:
            values = running_mean(values, _MEAN_STEPS)
        add_line(figure, at, values, name=escape(run.label), line={"color": run.colour, "width": 1.5})
    show_legend(figure)
    figure.update_layout(height=320)
    if zero:
        figure.update_yaxes(rangemode="tozero")
    is_long = any(len(run.summary.steps) > 4 * _MEAN_STEPS for run in runs)
    note = f"Runs of more than {4 * _MEAN_STEPS} steps as a running mean of {_MEAN_STEPS}." if is_long else ""
    return Chart(name=name, title=title, note=note, figure=figure, by_step=False)


def _column(steps: Sequence[StepRecord], value: Callable[[StepRecord], float]) -> Numbers:
    return np.fromiter((value(step) for step in steps), dtype=np.float64, count=len(steps))


def _held_out(runs: Sequence[ComparedRun], metric: str, title: str) -> Chart | None:
    figure = figure_of()
    for run in runs:
        tokens = {step.step: step.tokens for step in run.summary.steps}
        points = [
            (tokens.get(record.step, 0), value)
            for record in run.summary.evals
            if (value := record.metrics.get(metric)) is not None
        ]
        if points:
            figure.add_scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                mode="lines+markers",
                name=escape(run.label),
                line={"color": run.colour},
            )
    show_legend(figure)
    return Chart(name=metric, title=title, figure=figure, by_step=False) if figure.data else None
