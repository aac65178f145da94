"""Runs a suite on a live engine and makes the report of it. Draws no random number and changes no training state."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eval.data import EvalData, data_identity
from eval.lm import EngineLM, ScoringEngine
from eval.tasks.base import Task
from eval.tasks.held_out import HELD_OUT
from eval.tasks.multiple_choice import MULTIPLE_CHOICE
from eval.tasks.samples import SAMPLES
from training.config.schema import SuiteConfig
from training.durable_files import write_durably


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskReport:
    """What one task looked at."""

    version: int
    items: list[dict[str, Any]]
    """JSON object of each document, question or sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """Everything one evaluation found, equal on every rank but for the seconds."""

    suite_name: str
    suite: SuiteConfig
    metrics: dict[str, float]
    """All numbers of all tasks by name, bits_per_byte among them."""
    tasks: dict[str, TaskReport]
    """Task name -> what it looked at."""
    data_identity: str
    """SHA-256 of the held-out documents as the tokenizer splits them; numbers compare only if it is equal."""
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        """Held-out bits per byte: the number that gates look at."""
        return self.metrics["bits_per_byte"]

    @property
    def samples(self) -> list[dict[str, str]]:
        """Greedy samples: {"prompt": …, "text": …}."""
        return self.tasks[SAMPLES.name].items if SAMPLES.name in self.tasks else []


def evaluate(engine: ScoringEngine, data: EvalData, suite: SuiteConfig, *, suite_name: str) -> EvalReport:
    """Return the report of a suite on the engine's present weights. Collective: every rank calls it.

    Raises:
        DataError: the held-out text does not give what the suite asks for.
    """
    started = time.monotonic()
    lm = EngineLM(engine=engine, eos_id=data.tokenizer.eos_id, batch_sequences=suite.batch_sequences)
    metrics: dict[str, float] = {}
    tasks: dict[str, TaskReport] = {}
    with torch.no_grad():
        for task in _tasks_of(suite):
            result = task.run(lm, data, suite)
            metrics |= result.metrics
            tasks[task.name] = TaskReport(version=task.version, items=result.items)
    return EvalReport(
        suite_name=suite_name,
        suite=suite,
        metrics=metrics,
        tasks=tasks,
        data_identity=data_identity(data, suite),
        seconds=time.monotonic() - started,
    )


def to_json(report: EvalReport) -> str:
    """Return a report as JSON text."""
    return json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"


def write_report(report: EvalReport, path: Path) -> None:
    """Write a report so that the file is whole or absent after a kill; one rank does it.

    Raises:
        StorageError: it could not be written.
    """
    write_durably(path, to_json(report))


def with_more_items(suite: SuiteConfig, look: int) -> SuiteConfig:
    """Return a suite for a training stage's evaluation number `look`: each asks for twice the items of the one before.

    The first items stay the same ones.
    """
    factor = 2 ** (look - 1)
    return replace(
        suite,
        held_out_documents=suite.held_out_documents * factor,
        multiple_choice_items=suite.multiple_choice_items * factor,
    )


def _tasks_of(suite: SuiteConfig) -> list[Task]:
    """Return the tasks that a suite asks for."""
    tasks = [HELD_OUT]
    if suite.multiple_choice_items > 0:
        tasks.append(MULTIPLE_CHOICE)
    if suite.prompts:
        tasks.append(SAMPLES)
    return tasks
