"""The state machine of a run: train -> checkpoint -> evaluate -> gate -> next training stage, resumable at every arrow.

Every rank runs it and holds the same ledger; rank 0 alone commits it. A training stage starts from the newest whole
checkpoint, whatever layout wrote it, so a run that is continued and one that was never interrupted take the same path.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from training.checkpoint.manifest import Progress, read_manifest
from training.config.load import config_hash
from training.config.resume_policy import ChangeKind, compare
from training.config.schema import GateConfig, Resume, RunConfig
from training.data.loader import StageLoader
from training.engine.base import Engine, StepResult
from training.engine.process_group import ProcessGroup
from training.errors import AutarkyError, ConfigError, CorruptCheckpoint, DataError, GateBlocked, NonFiniteGradients
from training.models.sizes import training_flops_per_token
from training.reporting.records import (
    EvalRecord,
    GateRecord,
    IncidentRecord,
    StageRecord,
    StepRecord,
)
from training.reporting.reporter import Reporter
from training.stages import transitions
from training.stages.checkpointing import Checkpointing
from training.stages.curriculum import learning_rate
from training.stages.ledger import Ledger, StageStatus, commit

START = "start"
"""Name of the evaluation of the untrained model."""


class Evaluation(Protocol):
    """What the runner needs of an evaluation's report (eval.harness.EvalReport)."""

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


class Decision(Protocol):
    """What the runner needs of a gate's decision (eval.gates.GateDecision)."""

    @property
    def promoted(self) -> bool:
        """Whether the next training stage may start."""
        ...

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence per condition."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the composition root puts into a runner: things the runner must not know how to make."""

    processes: ProcessGroup
    reporter: Reporter
    build_engine: Callable[[str, bool], Engine]
    """(training stage, whether to draw initial weights: nothing else will fill them) -> engine; collective."""
    load_initial_weights: Callable[[Engine], None] | None
    """Fills a new engine with the weights of `init_from`; None if they are drawn."""
    checkpoints: Checkpointing
    open_loader: Callable[[str], StageLoader]
    data_fingerprint: str
    evaluate: Callable[[Engine, str, Path], Evaluation]
    """(engine, suite name, path) -> report, written to the path by rank 0; collective."""
    decide: Callable[[GateConfig, Mapping[str, float], Mapping[str, float] | None], Decision]
    peak_flops_per_second: float
    """Of one device, for MFU."""


def open_ledger(config: RunConfig, run_directory: Path, processes: ProcessGroup) -> Ledger:
    """Return the run's ledger on every rank, with this start counted in it; collective."""
    text = None
    if processes.rank == 0:
        ledger = transitions.started(Ledger.open(run_directory, list(config.stages)))
        commit(ledger, run_directory)
        text = ledger.to_json()
    return Ledger.from_json(processes.broadcast_text(text), run_directory)


class Runner:
    """One start of a run directory."""

    def __init__(self, config: RunConfig, run_directory: Path, parts: Parts, ledger: Ledger) -> None:
        self._config = config
        self._directory = run_directory
        self._checkpoints = parts.checkpoints
        self._parts = parts
        self._is_first = parts.processes.rank == 0
        self._ledger = ledger
        self._progress: Progress | None = None
        """Of this start; None before the first step of the run."""

    @property
    def ledger(self) -> Ledger:
        """The ledger as this rank knows it; rank 0 has committed it."""
        return self._ledger

    def run(self) -> None:
        """Bring the run to its end.

        Raises:
            GateBlocked: a gate did not promote.
            NonFiniteGradients: too many steps in a row could not be used.
            CorruptCheckpoint: checkpoints exist, but none is whole or they belong to another run.
        """
        self._find_checkpoint()
        try:
            while (entry := transitions.current_stage(self._ledger)) is not None:
                self._run_training_stage(entry.name)
        except AutarkyError as error:
            if error.on_every_rank:
                self._checkpoints.settle()  # what was saved last is worth the wait
            raise
        self._advance(transitions.done(self._ledger))
        self._record_stage("run", "done")

    # -- start ------------------------------------------------------------------------------------------------------

    def _find_checkpoint(self) -> None:
        for message in self._checkpoints.find():
            self._record_incident("corrupt_checkpoint", f"{message}; an older checkpoint is used")
        if (found := self._checkpoints.newest) is not None:
            self._use(found)
            self._record_incident("restart", f"continues from {found.name}")
        elif self._config.resume.mode is Resume.must:
            raise ConfigError(
                "resume", "must", f"{self._directory} holds no checkpoint", "resume=auto starts fresh"
            )
        step = self._steps_done
        for name in self._config.stages:
            if self._last_step(name) > step:
                # A training stage whose last checkpoint is gone is trained again, whatever the ledger says.
                self._advance(transitions.rewound(self._ledger, name))
                break

    def _use(self, checkpoint: Path) -> None:
        """Go on from a checkpoint, if this config may go on from what it was written with."""
        manifest = read_manifest(checkpoint)
        progress = manifest.progress
        names = list(self._config.stages)
        reached = names.index(progress.training_stage) if progress.training_stage in names else 0
        at_its_end = progress.step == self._last_step(names[reached])
        changes = compare(manifest.config, self._config, complete=names[: reached + at_its_end])
        for change in changes:
            self._record_incident("config_changed", f"{change.key}: {change.old!r} became {change.new!r}")
        numbers_changed = [change.key for change in changes if change.kind is not ChangeKind.free]
        if not any(key.startswith("data") for key in numbers_changed):
            self._check_data(progress, checkpoint)
        if not numbers_changed:
            planned = learning_rate(self._config, progress.training_stage, progress.stage_step - 1)
            if progress.lr != planned:
                raise CorruptCheckpoint(
                    f"{checkpoint}: its last step used learning rate {progress.lr}, the schedule gives {planned}\n"
                    "  -> another version of Autarky wrote it: go on with that version, or start a new run with "
                    f"init_from=checkpoint:{checkpoint}"
                )
        self._progress = progress

    def _check_data(self, progress: Progress, checkpoint: Path) -> None:
        if progress.data_fingerprint != self._parts.data_fingerprint:
            raise DataError(
                f"{checkpoint}: trained on data {progress.data_fingerprint}, prepared now is "
                f"{self._parts.data_fingerprint}\n  -> restore that data, or start a new run with resume=never"
            )

    # -- one training stage -----------------------------------------------------------------------------------------

    def _run_training_stage(self, name: str) -> None:
        if self._ledger.entry(name).status not in (StageStatus.evaluated, StageStatus.blocked):
            checkpoint, initial = self._checkpoints.newest, self._parts.load_initial_weights
            engine = self._parts.build_engine(name, checkpoint is None and initial is None)
            if checkpoint is not None:
                engine.load(checkpoint)
            elif initial is not None:
                initial(engine)
            self._evaluate_start(engine, name)
            if self._ledger.entry(name).status is not StageStatus.trained:
                self._train(engine, name)
            self._evaluate(engine, name)
            engine.close()
        self._ask_gate(name)

    def _train(self, engine: Engine, name: str) -> None:
        if self._ledger.entry(name).status is StageStatus.pending:
            self._advance(transitions.begun(self._ledger, name))
        self._record_stage(name, "begin", engine.layout.describe(), engine.notes)
        loader = self._parts.open_loader(name)
        first_step = self._config.first_step(name)
        while self._steps_done < self._last_step(name):
            stage_step = self._steps_done - first_step
            started = time.perf_counter()
            lr = learning_rate(self._config, name, stage_step)
            batches = loader.micro_batches(
                stage_step,
                replica=engine.layout.replica_of(self._parts.processes.rank),
                num_replicas=engine.layout.num_replicas,
            )
            result = engine.train_batch(batches, lr=lr)
            self._progress = self._after(result, name, stage_step + 1, lr)
            self._record_step(result, lr, loader.batch_id(stage_step), time.perf_counter() - started)
            self._check_finite(result)
            if self._steps_done < self._last_step(name):
                self._checkpoints.after_step(engine, self._progress)
        assert self._progress is not None
        checkpoint = self._checkpoints.at_end_of_stage(engine, self._progress)
        self._advance(transitions.trained(self._ledger, name, self._checkpoints.relative(checkpoint)))
        self._record_stage(name, "end", engine.layout.describe())

    def _after(self, result: StepResult, name: str, stage_step: int, lr: float) -> Progress:
        before = self._progress
        skips_before = before.skips_in_a_row if before else 0
        return Progress(
            step=self._steps_done + 1,
            training_stage=name,
            stage_step=stage_step,
            samples=stage_step * self._config.stages[name].global_batch_sequences,
            tokens=(before.tokens if before else 0) + result.num_tokens,
            optimizer_updates=(before.optimizer_updates if before else 0) + (not result.skipped),
            skips_in_a_row=skips_before + 1 if result.skipped else 0,
            lr=lr,
            config_hash=config_hash(self._config),
            data_fingerprint=self._parts.data_fingerprint,
        )

    def _check_finite(self, result: StepResult) -> None:
        if not result.skipped:
            return
        assert self._progress is not None
        origin = f" (from {result.culprit})" if result.culprit else ""
        self._record_incident("non_finite", f"gradient norm {result.grad_norm}{origin}: the step changed nothing")
        limit = self._config.fault_tolerance.max_consecutive_skips
        if self._progress.skips_in_a_row >= limit:
            raise NonFiniteGradients(
                f"{limit} steps in a row had NaN or Inf gradients, the last one step {self._steps_done}\n"
                "  -> no weight was changed by them; lower the learning rate or look at the data of these steps"
            )

    # -- between training stages ------------------------------------------------------------------------------------

    def _evaluate_start(self, engine: Engine, name: str) -> None:
        suite = self._config.stages[name].eval_suite
        untrained = self._steps_done == 0 and self._ledger.start_evaluation is None
        if suite and self._config.eval.at_start and untrained:
            path, metrics = self._measure(engine, suite, START)
            self._advance(transitions.with_start_evaluation(self._ledger, path, metrics))

    def _evaluate(self, engine: Engine, name: str) -> None:
        suite = self._config.stages[name].eval_suite
        if suite:
            path, metrics = self._measure(engine, suite, name)
            self._advance(transitions.evaluated(self._ledger, name, path, metrics))

    def _measure(self, engine: Engine, suite: str, name: str) -> tuple[str, dict[str, float]]:
        path = self._directory / "eval" / name / f"{suite}.json"
        report = self._parts.evaluate(engine, suite, path)
        self._parts.reporter.record(
            EvalRecord(
                step=self._steps_done,
                stage=name,
                suite=suite,
                bits_per_byte=report.metrics["bits_per_byte"],
                metrics=report.metrics,
                samples=report.samples,
                seconds=report.seconds,
                attempt=self._ledger.attempt,
            )
        )
        return self._relative(path), report.metrics

    def _ask_gate(self, name: str) -> None:
        gate = self._config.stages[name].gate
        evaluation = self._ledger.entry(name).evaluation
        if gate is None or evaluation is None:
            self._advance(transitions.promoted_without_gate(self._ledger, name))
            return
        previous = transitions.previous_metrics(self._ledger, name)
        decision = self._parts.decide(gate, evaluation.metrics, previous)
        self._advance(transitions.gated(self._ledger, name, promoted=decision.promoted, reasons=decision.reasons))
        self._parts.reporter.record(
            GateRecord(
                step=self._steps_done,
                stage=name,
                decision="promote" if decision.promoted else "block",
                reasons=list(decision.reasons),
                attempt=self._ledger.attempt,
            )
        )
        if not decision.promoted:
            self._record_stage("run", "blocked")
            raise GateBlocked(
                f"the gate after training stage {name} blocks: {'; '.join(decision.reasons)}\n"
                f"  -> the weights are in {self._ledger.entry(name).checkpoint}; "
                "train longer in a new run, or change the gate and continue with resume=auto"
            )

    # -- bookkeeping ------------------------------------------------------------------------------------------------

    @property
    def _steps_done(self) -> int:
        return self._progress.step if self._progress else 0

    def _last_step(self, name: str) -> int:
        return self._config.first_step(name) + self._config.num_steps(name)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._directory))

    def _advance(self, ledger: Ledger) -> None:
        if self._is_first and ledger != self._ledger:
            commit(ledger, self._directory)
        self._ledger = ledger

    def _record_step(self, result: StepResult, lr: float, batch_id: str, seconds: float) -> None:
        assert self._progress is not None
        stage = self._config.stages[self._progress.training_stage]
        flops = result.num_tokens * training_flops_per_token(self._config.model, stage.sequence_length)
        peak = self._parts.processes.world_size * self._parts.peak_flops_per_second
        self._parts.reporter.record(
            StepRecord(
                step=self._steps_done,
                stage=self._progress.training_stage,
                loss=result.loss,
                grad_norm=result.grad_norm,
                lr=lr,
                tokens=self._progress.tokens,
                tokens_per_second=result.num_tokens / seconds,
                mfu=flops / seconds / peak,
                batch_id=batch_id,
                attempt=self._ledger.attempt,
                seconds=seconds,
                skipped=result.skipped,
                bubble=result.bubble,
            )
        )

    def _record_incident(self, what: str, message: str) -> None:
        stage = self._progress.training_stage if self._progress else next(iter(self._config.stages))
        self._parts.reporter.record(
            IncidentRecord(step=self._steps_done, stage=stage, what=what, message=message, attempt=self._ledger.attempt)
        )

    def _record_stage(self, stage: str, event: str, layout: str = "", notes: Sequence[str] = ()) -> None:
        self._parts.reporter.record(
            StageRecord(
                step=self._steps_done,
                stage=stage,
                event=event,
                layout=layout,
                attempt=self._ledger.attempt,
                notes=list(notes),
            )
        )
