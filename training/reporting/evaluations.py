"""A run's evaluations side by side: metric by metric, over the occasions on which a suite was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.reporting.records import EvalRecord

MOST_IN_BETWEEN = 6
"""Columns for evaluations in the midst of one training stage; the chart has all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricGroup:
    """The metrics of one benchmark."""

    name: str
    """The benchmark; empty for what is measured on held-out text."""
    rows: list[tuple[str, list[float | None]]]
    """Metric, and its value on each occasion; None where it was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteTable:
    """Metric × occasion of one suite."""

    suite: str
    occasions: list[EvalRecord]
    """The columns, in the order of steps."""
    groups: list[MetricGroup]
    num_left_out: int
    """Evaluations in the midst of training stages that have no column."""


def occasion(record: EvalRecord) -> str:
    """Return when an evaluation was made, for a heading: start, "pretrain", or "pretrain, step 40"."""
    return f"{record.stage}, step {record.step}" if record.in_between else record.stage


def suite_tables(evals: Sequence[EvalRecord]) -> list[SuiteTable]:
    """Return a table for each suite.

    Args:
        evals: in the order of steps.
    """
    tables = []
    for suite in dict.fromkeys(record.suite for record in evals):
        of_suite = [record for record in evals if record.suite == suite]
        shown = [record for record in of_suite if not record.in_between or _is_recent(record, of_suite)]
        tables.append(
            SuiteTable(
                suite=suite,
                occasions=shown,
                groups=metric_groups([record.metrics for record in shown]),
                num_left_out=len(of_suite) - len(shown),
            )
        )
    return tables


def metric_groups(columns: Sequence[Mapping[str, float]]) -> list[MetricGroup]:
    """Return the metrics of evaluations, benchmark by benchmark.

    Args:
        columns: all numbers of each evaluation by name, a benchmark's as "<benchmark>/<metric>".
    """
    names: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(name for column in columns for name in column):
        benchmark, slash, metric = name.partition("/")
        names.setdefault(benchmark if slash else "", {})[metric if slash else name] = name
    return [
        MetricGroup(
            name=benchmark,
            rows=[(metric, [column.get(name) for column in columns]) for metric, name in metrics.items()],
        )
        for benchmark, metrics in names.items()
    ]


def newest_of_stages(evals: Sequence[EvalRecord]) -> list[EvalRecord]:
    """Return the newest evaluation of the start and of each training stage, of those whose report is known.

    Args:
        evals: in the order of steps.
    """
    return list({record.stage: record for record in evals if record.report}.values())


def _is_recent(record: EvalRecord, evals: list[EvalRecord]) -> bool:
    """Return whether an evaluation is among its training stage's last ones in the midst of it."""
    steps = [other.step for other in evals if other.in_between and other.stage == record.stage]
    return record.step in steps[-MOST_IN_BETWEEN:]
