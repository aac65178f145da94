"""The steps of one training stage: batch, update, bookkeeping, checkpoint; alike however often it was interrupted."""

import time
from pathlib import Path

from training.checkpoint.manifest import Progress
from training.config.load import config_hash
from training.config.schema import RunConfig
from training.data.loader import StageLoader
from training.engine.base import Engine, StepInstructions, StepResult
from training.engine.process_group import ProcessGroup
from training.errors import Stopped
from training.fault_tolerance.corruption import CorruptionChecks
from training.fault_tolerance.heartbeat import Heartbeat, Section
from training.fault_tolerance.recovery import Action, Cause, Verdict
from training.stages.checkpointing import Checkpointing
from training.stages.curriculum import learning_rate
from training.stages.evaluating import Evaluations
from training.stages.forecasting import Forecasting
from training.stages.interruption import Interruption
from training.stages.journal import Journal
from training.stages.profiling import Profiling
from training.stages.recovering import Recovery, raise_if_stopped, skipped_batches
from training.stages.statistics import Statistics


class TrainingLoop:
    """Does the steps of training stages; every rank has one and calls it alike."""

    def __init__(
        self,
        config: RunConfig,
        run_directory: Path,
        *,
        processes: ProcessGroup,
        checkpoints: Checkpointing,
        journal: Journal,
        data_fingerprint: str,
        interruption: Interruption,
        heartbeat: Heartbeat,
        corruption: CorruptionChecks,
        evaluations: Evaluations,
    ) -> None:
        self._config = config
        self._directory = run_directory
        self._processes = processes
        self._checkpoints = checkpoints
        self._journal = journal
        self._data_fingerprint = data_fingerprint
        self._config_hash = config_hash(config)
        self._interruption = interruption
        self._heartbeat = heartbeat
        self._corruption = corruption
        self._evaluations = evaluations
        self._statistics = Statistics(config.reporting, processes=processes, journal=journal)
        self._profiling = Profiling(
            config.reporting.profile,
            run_directory,
            rank=processes.rank,
            device=processes.device,
            journal=journal,
            heartbeat=heartbeat,
        )
        self.recovery = Recovery(config.fault_tolerance, skipped_batches(config))
        """The policy and its state, moved on with `journal.progress`."""

    def last_step(self, name: str) -> int:
        """Return the global step count after the last step of a training stage."""
        return self._config.first_step(name) + self._config.num_steps(name)

    def run(self, engine: Engine, loader: StageLoader, name: str) -> int | None:
        """Do what is left of a training stage's steps.

        Returns:
            None when all are done; else the step of the run to which it has to go back.

        Raises:
            NonFiniteGradients: too many steps in a row could not be used.
            LossSpike: likewise, or the run went back too often.
            SilentCorruption: a rank computed or kept something else than it should; nothing of the step is saved.
            StorageError: too many saves in a row have failed.
            Stopped: the run was told to stop; what was done so far is saved.
        """
        try:
            return self._run(engine, loader, name)
        finally:
            self._profiling.close()

    def _run(self, engine: Engine, loader: StageLoader, name: str) -> int | None:
        first_step = self._config.first_step(name)
        is_first = self._processes.rank == 0
        forecasting = Forecasting(self._config, self._directory, name, journal=self._journal, is_first=is_first)
        while self._journal.steps_done < self.last_step(name):
            self._measure(engine, name)
            stage_step = self._journal.steps_done - first_step
            self._profiling.before_step(self._journal.steps_done + 1)
            started = time.perf_counter()
            self._heartbeat.section(Section.data, self._journal.steps_done + 1)
            lr = learning_rate(self._config, name, stage_step)
            batch = self.recovery.batch_of(name, stage_step)
            batches = loader.micro_batches(
                batch,
                replica=engine.layout.replica_of(self._processes.rank),
                num_replicas=engine.layout.num_replicas,
            )
            before = self._journal.progress
            self._heartbeat.step_begins(self._journal.steps_done + 1)
            result = engine.train_batch(batches, lr=lr, instructions=self._instructions(engine, name))
            verdict = self.recovery.judge(before, name, result)
            self._journal.progress = self._after(result, verdict, name, stage_step + 1, batch, lr)
            seconds = time.perf_counter() - started
            waited_seconds = self._heartbeat.step_ends(
                self._journal.steps_done, seconds=seconds, place=engine.layout.pipeline_stage_of(self._processes.rank)
            )
            self._heartbeat.take_notices(self._journal.incident)
            self._journal.step(
                result,
                lr=lr,
                batch=batch,
                batch_id=loader.batch_id(batch),
                seconds=seconds,
                waited_seconds=waited_seconds,
            )
            self._write_down(result, verdict)
            self._statistics.after_step(engine, result)
            forecasting.after_step(result, lr=lr)
            self._profiling.after_step(self._journal.steps_done)
            if verdict.action is Action.roll_back:
                return first_step + self._leave_out(before, verdict, name, stage_step)
            raise_if_stopped(
                verdict, step=self._journal.steps_done, skips_in_a_row=self._journal.progress.skips_in_a_row
            )
            if self._journal.steps_done < self.last_step(name):
                self._checkpoints.after_step(engine, self._journal.progress)
                self._corruption.after_update(engine, self._journal.steps_done)
                self._stop_if_told(engine)
        return None

    def _instructions(self, engine: Engine, name: str) -> StepInstructions:
        """Return what is asked of the next step; nothing unusual where no check is due."""
        progress = self._journal.progress

        def accept(loss: float) -> bool:
            self._corruption.before_update(engine)
            return not self.recovery.holds_back or self.recovery.accepts(progress, name, loss)

        is_asked = self.recovery.holds_back or self._corruption.watches_rest
        step = self._journal.steps_done + 1
        return StepInstructions(
            accept=accept if is_asked else None,
            twice=self._corruption.is_computed_twice(step),
            measure_layers=self._statistics.measures_layers(step),
        )

    def _leave_out(self, before: Progress | None, verdict: Verdict, name: str, stage_step: int) -> int:
        """Leave the batches of a spike out; return how many of the training stage's steps stay."""
        kept_steps, window = self.recovery.go_back(before, name, stage_step)
        last = window.first_batch + window.num_batches - 1
        self._journal.incident(
            "rollback",
            f"{verdict.reason}: back to step {self._config.first_step(name) + kept_steps}; batches "
            f"{window.first_batch} to {last} of {name} are left out",
        )
        return kept_steps

    def _measure(self, engine: Engine, name: str) -> None:
        """Evaluate if it is time: before a step, so that a start that goes on makes up for what is missing."""
        try:
            self._evaluations.in_between(engine, name)
        except Stopped:
            assert self._journal.progress is not None
            self._checkpoints.save_now(engine, self._journal.progress)
            raise

    def _stop_if_told(self, engine: Engine) -> None:
        try:
            self._interruption.check_after_sum()  # of the step itself, or of a save that is written meanwhile
        except Stopped:
            assert self._journal.progress is not None
            self._checkpoints.save_now(engine, self._journal.progress)
            raise

    def _after(
        self, result: StepResult, verdict: Verdict, name: str, stage_step: int, batch: int, lr: float
    ) -> Progress:
        before = self._journal.progress
        moved_on = Progress(
            step=self._journal.steps_done + 1,
            training_stage=name,
            stage_step=stage_step,
            samples=self._config.batch_sizes(name).samples_before(batch + 1),
            tokens=(before.tokens if before else 0) + result.num_tokens,
            optimizer_updates=(before.optimizer_updates if before else 0) + (not result.skipped),
            skips_in_a_row=0,
            lr=lr,
            config_hash=self._config_hash,
            data_fingerprint=self._data_fingerprint,
        )
        return self.recovery.counted(before, moved_on, result, verdict)

    def _write_down(self, result: StepResult, verdict: Verdict) -> None:
        if verdict.action in (Action.use, Action.roll_back):  # a rollback has an incident of its own
            return
        message = f"{verdict.reason}: the step changed nothing" if result.skipped else verdict.reason
        if verdict.cause is Cause.non_finite:
            origin = f" (from {result.culprit})" if result.culprit else ""
            message = f"gradient norm {result.grad_norm}{origin}: the step changed nothing"
        self._journal.incident(verdict.cause, message)
