"""The steps of a run as columns of numbers, training stage by training stage: what curves are drawn from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.reporting.charts import COLOURS, Numbers
from training.reporting.records import StepRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSteps:
    """The steps of one training stage."""

    stage: str
    colour: str
    records: list[StepRecord]
    steps: Numbers

    def column(self, value: Callable[[StepRecord], float | None]) -> Numbers:
        """Return a number of each step; NaN where there is none."""
        return np.array([value(record) for record in self.records], dtype=np.float64)  # None becomes NaN


def by_stage(steps: Sequence[StepRecord]) -> list[StageSteps]:
    """Return the steps of each training stage, in the order in which they were first trained."""
    records: dict[str, list[StepRecord]] = {}
    for step in steps:
        records.setdefault(step.stage, []).append(step)
    return [
        StageSteps(
            stage=stage,
            colour=COLOURS[number % len(COLOURS)],
            records=mine,
            steps=np.array([step.step for step in mine], dtype=np.float64),
        )
        for number, (stage, mine) in enumerate(records.items())
    ]
