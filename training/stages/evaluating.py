"""When a run is evaluated, and what becomes of an evaluation that fails: the run goes on, and says so."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from training.checkpoint.manifest import Progress
from training.config.schema import RunConfig
from training.engine.base import Engine
from training.errors import EvaluationFailed
from training.fault_tolerance.heartbeat import Heartbeat, Section
from training.stages.interruption import InterruptibleInference, Interruption
from training.stages.journal import Journal


class Evaluation(Protocol):
    """What the runner needs of an evaluation's report (eval.harness.Summary)."""

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers by name."""
        ...

    @property
    def samples(self) -> list[dict[str, str]]:
        """Greedy samples."""
        ...

    @property
    def seconds(self) -> float:
        """Wall time."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Occasion:
    """What is to be measured."""

    suite: str
    """Its name."""
    look: int
    """Which evaluation of the training stage's end it is, from 1; each later one has more items."""
    path: Path
    """Where rank 0 writes the report. One that is there already, of the same suite and weights, is read instead."""
    weights: str
    """Says which weights are measured: alike for weights that are alike, in two starts of a run too."""


Evaluate = Callable[[InterruptibleInference, Occasion], Evaluation]
"""Measures an engine; collective. Raises EvaluationFailed on every rank."""


class Evaluations:
    """Measures the model that trains; every rank has one and calls it alike."""

    def __init__(
        self,
        config: RunConfig,
        run_directory: Path,
        *,
        evaluate: Evaluate,
        journal: Journal,
        interruption: Interruption,
        heartbeat: Heartbeat,
    ) -> None:
        self._config = config
        self._directory = run_directory
        self._evaluate = evaluate
        self._journal = journal
        self._interruption = interruption
        self._heartbeat = heartbeat

    def measure(
        self, engine: Engine, suite: str, name: str, *, look: int = 1, step: int | None = None
    ) -> tuple[str, dict[str, float]] | None:
        """Return the report's path in the run directory and its numbers; None if the evaluation failed.

        Args:
            engine: with the weights that are measured.
            suite: its name.
            name: the training stage, or "start".
            look: which evaluation of the training stage's end it is.
            step: of the run, in the midst of a training stage; None at its end.

        Raises:
            Stopped: the run was told to stop.
        """
        self._heartbeat.section(Section.evaluation, self._journal.steps_done)
        folder = self._directory / "eval" / name
        if step is not None:
            path = folder / f"step-{step:08d}" / f"{suite}.json"
        else:
            path = folder / (f"{suite}.json" if look == 1 else f"{suite}-look-{look}.json")
        inference = InterruptibleInference(engine, self._interruption, self._heartbeat)
        try:
            found = self._evaluate(
                inference, Occasion(suite=suite, look=look, path=path, weights=weights_identity(self._journal.progress))
            )
        except EvaluationFailed as error:
            self._journal.incident("evaluation_failed", f"suite {suite} after {name}: {error}; nothing was measured")
            return None
        report = str(path.relative_to(self._directory))
        self._journal.evaluation(
            name,
            suite,
            metrics=found.metrics,
            samples=found.samples,
            seconds=found.seconds,
            report=report,
            in_between=step is not None,
        )
        return report, found.metrics

    def in_between(self, engine: Engine, name: str) -> None:
        """Measure in the midst of a training stage, if it is time and was not done.

        Raises:
            Stopped: the run was told to stop.
        """
        stage, done = self._config.stages[name], self._journal.steps_done
        stage_step = done - self._config.first_step(name)
        every = stage.eval_every_steps
        if stage.eval_suite and every and 0 < stage_step < self._config.num_steps(name) and stage_step % every == 0:
            self.measure(engine, stage.eval_suite, name, step=done)


def weights_identity(progress: Progress | None) -> str:
    """Return a hash of all that the weights follow from: what was learned so far, from which config and data."""
    return hashlib.sha256(repr(progress).encode()).hexdigest()[:16]
