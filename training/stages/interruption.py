"""Where a run looks whether it was told to stop: at every arrow, after every step, before every batch of an evaluation.

All ranks look at the same places, whatever signal came to whom, so all of them leave at the same one.
"""

from dataclasses import dataclass

from torch import Tensor

from training.data.batch import MicroBatch
from training.engine.base import Engine, Sampling, SequenceScores
from training.engine.process_group import ProcessGroup
from training.fault_tolerance.heartbeat import Heartbeat
from training.fault_tolerance.signals import StopRequest
from training.models.inference import KeyValueCache
from training.parallel.layout import Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class Interruption:
    """Asks all ranks; every rank has one and calls it alike."""

    request: StopRequest
    processes: ProcessGroup

    def check(self) -> None:
        """Return unless any rank was told to stop; collective.

        Raises:
            Stopped: on every rank alike.
        """
        self.processes.sum([])
        self.check_after_sum()

    def check_after_sum(self) -> None:
        """The same by the votes that the latest sum over all ranks carried, such as that of a training step.

        Raises:
            Stopped: on every rank alike.
        """
        if self.processes.ballot.any_yes:
            raise self.request.stopped()


class InterruptibleInference:
    """What an evaluation sees of an engine (`eval.lm.InferenceEngine`): it is left before its next call if told to.

    Replicas run different batches but call equally often, so they ask equally often. Every call says that it goes on.
    """

    def __init__(self, engine: Engine, interruption: Interruption, heartbeat: Heartbeat) -> None:
        self._engine = engine
        self._interruption = interruption
        self._heartbeat = heartbeat

    @property
    def layout(self) -> Layout:
        """The engine's."""
        return self._engine.layout

    def score(self, batch: MicroBatch, cache: KeyValueCache | None = None) -> SequenceScores:
        """Score sequences; see `Engine.score`. The section's time begins anew.

        Raises:
            Stopped: on every rank alike.
        """
        self.keep_alive()
        return self._engine.score(batch, cache)

    def next_tokens(
        self, input_ids_BT: Tensor, num_tokens_B: Tensor, cache: KeyValueCache, sampling: Sampling | None = None
    ) -> Tensor:
        """Continue sequences by one token; see `Engine.next_tokens`. The section's time begins anew.

        Raises:
            Stopped: on every rank alike.
        """
        self.keep_alive()
        return self._engine.next_tokens(input_ids_BT, num_tokens_B, cache, sampling)

    def keep_alive(self) -> None:
        """Let the section's time begin anew, while other work is done than the engine's; collective.

        Raises:
            Stopped: on every rank alike.
        """
        self._heartbeat.go_on()
        self._interruption.check()
