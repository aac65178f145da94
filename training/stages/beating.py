"""An engine that says with every batch it scores that the evaluation goes on."""

from dataclasses import dataclass

from training.data.batch import MicroBatch
from training.engine.base import Engine, SequenceScores
from training.fault_tolerance.heartbeat import Heartbeat
from training.parallel.layout import Layout
from training.stages.interruption import InterruptibleScoring


@dataclass(frozen=True, slots=True)
class Beating:
    """What an evaluation sees of an engine (`eval.lm.ScoringEngine`)."""

    engine: Engine | InterruptibleScoring
    heartbeat: Heartbeat

    @property
    def layout(self) -> Layout:
        """Which rank does what."""
        return self.engine.layout

    def score(self, batch: MicroBatch) -> SequenceScores:
        """Score sequences; the section's time begins anew."""
        self.heartbeat.go_on()
        return self.engine.score(batch)
