"""The steps of one training stage: batch, update, bookkeeping, checkpoint; alike however often it was interrupted."""

import time

from training.checkpoint.manifest import Progress
from training.config.load import config_hash
from training.config.schema import RunConfig
from training.data.loader import StageLoader
from training.engine.base import Engine, StepResult
from training.engine.process_group import ProcessGroup
from training.errors import NonFiniteGradients, Stopped
from training.fault_tolerance.heartbeat import Heartbeat, Section
from training.stages.checkpointing import Checkpointing
from training.stages.curriculum import learning_rate
from training.stages.interruption import Interruption
from training.stages.journal import Journal


class TrainingLoop:
    """Does the steps of training stages; every rank has one and calls it alike."""

    def __init__(
        self,
        config: RunConfig,
        *,
        processes: ProcessGroup,
        checkpoints: Checkpointing,
        journal: Journal,
        data_fingerprint: str,
        interruption: Interruption,
        heartbeat: Heartbeat,
    ) -> None:
        self._config = config
        self._processes = processes
        self._checkpoints = checkpoints
        self._journal = journal
        self._data_fingerprint = data_fingerprint
        self._interruption = interruption
        self._heartbeat = heartbeat

    def last_step(self, name: str) -> int:
        """Return the global step count after the last step of a training stage."""
        return self._config.first_step(name) + self._config.num_steps(name)

    def run(self, engine: Engine, loader: StageLoader, name: str) -> None:
        """Do what is left of a training stage's steps.

        Raises:
            NonFiniteGradients: too many steps in a row could not be used.
            StorageError: too many saves in a row have failed.
            Stopped: the run was told to stop; what was done so far is saved.
        """
        first_step = self._config.first_step(name)
        while self._journal.steps_done < self.last_step(name):
            stage_step = self._journal.steps_done - first_step
            started = time.perf_counter()
            self._heartbeat.section(Section.data, self._journal.steps_done + 1)
            lr = learning_rate(self._config, name, stage_step)
            batches = loader.micro_batches(
                stage_step,
                replica=engine.layout.replica_of(self._processes.rank),
                num_replicas=engine.layout.num_replicas,
            )
            self._heartbeat.step_begins(self._journal.steps_done + 1)
            result = engine.train_batch(batches, lr=lr)
            self._journal.progress = self._after(result, name, stage_step + 1, lr)
            seconds = time.perf_counter() - started
            self._heartbeat.step_ends(
                self._journal.steps_done, seconds=seconds, place=engine.layout.pipeline_stage_of(self._processes.rank)
            )
            self._heartbeat.take_notices(self._journal.incident)
            self._journal.step(result, lr=lr, batch_id=loader.batch_id(stage_step), seconds=seconds)
            self._check_finite(result)
            if self._journal.steps_done < self.last_step(name):
                self._checkpoints.after_step(engine, self._journal.progress)
                self._stop_if_told(engine)

    def _stop_if_told(self, engine: Engine) -> None:
        try:
            self._interruption.check_after_sum()  # of the step itself, or of a save that is written meanwhile
        except Stopped:
            assert self._journal.progress is not None
            self._checkpoints.save_now(engine, self._journal.progress)
            raise

    def _after(self, result: StepResult, name: str, stage_step: int, lr: float) -> Progress:
        before = self._journal.progress
        skips_before = before.skips_in_a_row if before else 0
        return Progress(
            step=self._journal.steps_done + 1,
            training_stage=name,
            stage_step=stage_step,
            samples=stage_step * self._config.stages[name].global_batch_sequences,
            tokens=(before.tokens if before else 0) + result.num_tokens,
            optimizer_updates=(before.optimizer_updates if before else 0) + (not result.skipped),
            skips_in_a_row=skips_before + 1 if result.skipped else 0,
            lr=lr,
            config_hash=config_hash(self._config),
            data_fingerprint=self._data_fingerprint,
        )

    def _check_finite(self, result: StepResult) -> None:
        if not result.skipped:
            return
        assert self._journal.progress is not None
        origin = f" (from {result.culprit})" if result.culprit else ""
        self._journal.incident("non_finite", f"gradient norm {result.grad_norm}{origin}: the step changed nothing")
        limit = self._config.fault_tolerance.max_consecutive_skips
        if self._journal.progress.skips_in_a_row >= limit:
            raise NonFiniteGradients(
                f"{limit} steps in a row had NaN or Inf gradients, the last one step {self._journal.steps_done}\n"
                "  -> no weight was changed by them; lower the learning rate or look at the data of these steps"
            )
