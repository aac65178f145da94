"""The shape all tasks share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.data import EvalData
from eval.lm import EngineLM
from training.config.schema import SuiteConfig


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
    run: Callable[[EngineLM, EvalData, SuiteConfig], TaskResult]
    """Measures; collective over all ranks."""
