"""The shape all tasks share."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.conductor import TokenModel
from eval.data import EvalData
from eval.statistics import Items
from training.config.eval_schema import SuiteConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """What a task measured, equal on every rank."""

    metrics: dict[str, float]
    """Numbers by name; names are unique over all tasks."""
    items: list[dict[str, Any]]
    """JSON object of each document, question or sample, so that a reader can see what the numbers are made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A kind of measurement."""

    name: str
    version: int
    """Raised with every change that can change a number; results of different versions are not comparable."""
    run: Callable[[TokenModel, EvalData, SuiteConfig], TaskResult]
    """Measures; on rank 0."""
    metrics: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], Items]] = field(default_factory=dict)
    """What gates can ask for -> that metric of the task's items, as they stand in a report."""


def content_key(*token_ids: Sequence[int]) -> str:
    """Return a short hash of what an item is made of: items of two reports pair up if it is the same."""
    digest = hashlib.sha256()
    for ids in token_ids:
        digest.update(f"{len(ids)} ".encode())
        digest.update(np.asarray(ids, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]


def item_key(item: Mapping[str, Any]) -> str:
    """Return what a report's item pairs up by with that of another report."""
    return f"{item['id']} {item['key']}"


def items_by_key(items: Sequence[Mapping[str, Any]], *, above: str, below: str | None, higher_is_better: bool) -> Items:
    """Return a metric of a report's items from two of their fields; without a field below, each item counts 1."""
    keys = [item_key(item) for item in items]
    return Items(
        numerators={key: float(item[above]) for key, item in zip(keys, items, strict=True)},
        denominators={key: float(item[below]) if below else 1.0 for key, item in zip(keys, items, strict=True)},
        higher_is_better=higher_is_better,
    )
