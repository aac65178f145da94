"""The state machine of a run: train -> checkpoint -> evaluate -> gate -> next training stage, resumable at every arrow.

Every rank runs it and holds the same ledger; rank 0 alone commits it. A training stage starts from the newest whole
checkpoint, whatever layout wrote it, so a run that is continued and one that was never interrupted take the same path.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.checkpoint.manifest import read_manifest
from training.config.gate_checks import START
from training.config.gate_schema import GateAction
from training.config.schema import Resume, RunConfig
from training.data.loader import StageLoader
from training.engine.base import Engine
from training.engine.process_group import ProcessGroup
from training.errors import AutarkyError, ConfigError, GateBlocked, SilentCorruption, Stopped
from training.fault_tolerance.corruption import CorruptionChecks
from training.fault_tolerance.heartbeat import Heartbeat, Section
from training.reporting.formatting import duration, num_bytes
from training.reporting.records import StartRecord
from training.reporting.reporter import Reporter
from training.stages import transitions
from training.stages.checkpointing import Checkpointing
from training.stages.evaluating import Evaluate, Evaluations
from training.stages.gatekeeper import Decide, Gatekeeper
from training.stages.interruption import Interruption
from training.stages.journal import Journal
from training.stages.ledger import GateOutcome, Ledger, StageStatus, commit
from training.stages.referencing import Referencing
from training.stages.resumption import changes_since
from training.stages.training_loop import TrainingLoop


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
    open_loader: Callable[[str, Mapping[str, int]], StageLoader]
    """(training stage, batches that each training stage has left out) -> its data."""
    data_fingerprint: str
    evaluate: Evaluate
    decide: Decide
    start: StartRecord
    """Of this start."""
    interruption: Interruption
    """Whether the run was told to stop."""
    heartbeat: Heartbeat
    """Is told what this rank is doing."""
    corruption: CorruptionChecks


def open_ledger(config: RunConfig, run_directory: Path, processes: ProcessGroup) -> Ledger:
    """Return the run's ledger on every rank, with this start counted in it; collective."""
    text = None
    if processes.rank == 0:
        ledger = transitions.started(Ledger.open(run_directory, list(config.stages)))
        commit(ledger, run_directory)
        text = ledger.to_json()
    return Ledger.from_json(processes.broadcast_text(text), run_directory)


_UNMEASURED = (
    "training stage {name} could not be evaluated, so its gate cannot decide; metrics.jsonl says why "
    "(evaluation_failed)\n  -> the weights are saved; mend the suite, or give it up (stages.{name}.eval_suite=null and "
    "gate=null), then resume=auto evaluates them"
)


class Runner:
    """One start of a run directory."""

    def __init__(self, config: RunConfig, run_directory: Path, parts: Parts, ledger: Ledger) -> None:
        self._config = config
        self._directory = run_directory
        self._checkpoints = parts.checkpoints
        self._parts = parts
        self._is_first = parts.processes.rank == 0
        self._ledger = ledger
        self._gatekeeper = Gatekeeper(
            config=config, run_directory=run_directory, processes=parts.processes, decide=parts.decide
        )
        self._journal = Journal(config, parts.reporter, heartbeat=parts.heartbeat, start=parts.start)
        self._evaluations = Evaluations(
            config,
            run_directory,
            evaluate=parts.evaluate,
            journal=self._journal,
            interruption=parts.interruption,
            heartbeat=parts.heartbeat,
        )
        self._referencing = Referencing(
            config,
            run_directory,
            processes=parts.processes,
            journal=self._journal,
            data_fingerprint=parts.data_fingerprint,
            interruption=parts.interruption,
            heartbeat=parts.heartbeat,
        )
        self._loop = TrainingLoop(
            config,
            run_directory,
            processes=parts.processes,
            checkpoints=parts.checkpoints,
            journal=self._journal,
            data_fingerprint=parts.data_fingerprint,
            interruption=parts.interruption,
            heartbeat=parts.heartbeat,
            corruption=parts.corruption,
            evaluations=self._evaluations,
        )

    @property
    def ledger(self) -> Ledger:
        """The ledger as this rank knows it; rank 0 has committed it."""
        return self._ledger

    def run(self) -> None:
        """Bring the run to its end, or to that of the training stage `run.until`.

        Raises:
            GateBlocked: a gate did not promote.
            Stopped: the run was told to stop; all that was done is saved.
            NonFiniteGradients: too many steps in a row could not be used.
            LossSpike: likewise, or the run went back too often.
            SilentCorruption: a rank computed or kept something else than it should.
            CorruptCheckpoint: checkpoints exist, but none is whole or they belong to another run.
        """
        self._parts.heartbeat.section(Section.load)
        self._finish_roll_back()
        self._find_checkpoint()
        try:
            while (entry := transitions.current_stage(self._ledger)) is not None:
                self._parts.interruption.check()
                if self._is_past_until(entry.name):
                    self._journal.stage("run", "until")
                    return
                self._run_training_stage(entry.name)
        except AutarkyError as error:
            self._journal.book()
            if isinstance(error, SilentCorruption):
                self._journal.incident("silent_corruption", str(error))
            if error.on_every_rank:
                self._checkpoints.settle()  # what was saved last is worth the wait
            if isinstance(error, Stopped):
                self._advance(transitions.stopped(self._ledger))
                self._journal.stage("run", "stopped")
            raise
        self._advance(transitions.done(self._ledger))
        self._journal.stage("run", "done")

    def _is_past_until(self, name: str) -> bool:
        """Return whether a training stage comes after the one that this start was asked to end with."""
        until, names = self._config.run.until, list(self._config.stages)
        return until is not None and names.index(name) > names.index(until)

    # -- start ------------------------------------------------------------------------------------------------------

    def _finish_roll_back(self) -> None:
        """Do what an earlier start had begun: a training stage whose gate rolls it back is not gone on with.

        Raises:
            GateBlocked: there was something to be done.
        """
        entry = transitions.current_stage(self._ledger)
        if entry is not None and transitions.is_to_be_rolled_back(entry) and self._is_half_rolled_back(entry.name):
            assert entry.gate is not None
            self._roll_back(entry.name, entry.gate)

    def _is_half_rolled_back(self, name: str) -> bool:
        """Return whether the checkpoint of a training stage's end has its new name already, the same on every rank."""
        checkpoint = self._ledger.entry(name).checkpoint
        assert checkpoint is not None
        aside = self._directory / f"{checkpoint}{transitions.roll_back_suffix(self._ledger)}"
        return not self._parts.processes.agree(not (self._is_first and aside.is_dir()))

    def _find_checkpoint(self) -> None:
        for message in self._checkpoints.find():
            self._journal.incident("corrupt_checkpoint", f"{message}; an older checkpoint is used")
        if (found := self._checkpoints.newest) is not None:
            self._use(found)
            self._parts.heartbeat.take_notices(self._journal.incident)
            self._journal.incident("restart", f"continues from {found.name}")
        elif self._config.resume.mode is Resume.must:
            raise ConfigError("resume", "must", f"{self._directory} holds no checkpoint", "resume=auto starts fresh")
        step = self._journal.steps_done
        for name in self._config.stages:
            if self._loop.last_step(name) > step:
                # A training stage whose last checkpoint is gone is trained again, whatever the ledger says.
                self._advance(transitions.rewound(self._ledger, name))
                break

    def _use(self, checkpoint: Path) -> None:
        """Go on from a checkpoint, if this config may go on from what it was written with."""
        manifest = read_manifest(checkpoint)
        self._journal.progress = manifest.progress
        self._loop.recovery.resume(manifest.progress)
        fingerprint = self._parts.data_fingerprint
        for change in changes_since(checkpoint, manifest, self._config, data_fingerprint=fingerprint):
            self._journal.incident("config_changed", f"{change.key}: {change.old!r} became {change.new!r}")

    # -- one training stage -----------------------------------------------------------------------------------------

    def _run_training_stage(self, name: str) -> None:
        status, more = self._ledger.entry(name).status, transitions.wants_more_items(self._ledger, name)
        if status in (StageStatus.evaluated, StageStatus.blocked) and not more:
            self._ask_gate(name)
            return
        checkpoint, initial = self._checkpoints.newest, self._parts.load_initial_weights
        self._parts.heartbeat.section(Section.build, self._journal.steps_done)
        engine = self._parts.build_engine(name, checkpoint is None and initial is None)
        notes = list(engine.notes)
        self._parts.heartbeat.section(Section.load)
        if checkpoint is not None:
            loaded = engine.load(checkpoint)
            read, took = num_bytes(loaded.bytes_read), duration(loaded.seconds)
            notes.append(f"state of {checkpoint.name}: rank 0 read its share, {read}, in {took}")
        elif initial is not None:
            initial(engine)
        self._parts.interruption.check()
        self._evaluate_start(engine, name)
        is_trained = status is StageStatus.trained or more
        if not is_trained and not self._train(engine, name, notes):
            engine.close()
            return  # `run` comes back here, and the engine is filled from before the spike
        outcome = self._judge(engine, name)
        engine.close()
        self._go_by(name, outcome)

    def _train(self, engine: Engine, name: str, notes: Sequence[str]) -> bool:
        """Bring a training stage to its end; return False if it has to be taken up again from an earlier step."""
        if self._ledger.entry(name).status is StageStatus.pending:
            self._advance(transitions.begun(self._ledger, name))
        left_out = {other: self._loop.recovery.batches_left_out(other) for other in self._config.stages}
        loader = self._parts.open_loader(name, left_out)
        loader.references = self._referencing.of(
            engine,
            name,
            loader,
            left_out,
            began_with=lambda: self._began_with(name),
            newest=self._checkpoints.newest,
        )
        self._parts.interruption.check()
        self._journal.stage(name, "begin", engine.layout.describe(), [*notes, *loader.notes])
        self._parts.processes.forget_peak_memory()
        back_to = self._loop.run(engine, loader, name)
        if back_to is not None:
            self._go_back(back_to)
            return False
        assert self._journal.progress is not None
        checkpoint = self._checkpoints.save_now(engine, self._journal.progress)
        self._advance(transitions.trained(self._ledger, name, self._checkpoints.relative(checkpoint)))
        peak = self._parts.processes.peak_memory_bytes()
        self._journal.stage(name, "end", engine.layout.describe(), peak_memory_bytes=peak)
        self._parts.interruption.check()
        return True

    def _began_with(self, name: str) -> Path | None:
        """Return the checkpoint that a training stage began with; None if it began with initial weights."""
        names = list(self._config.stages)
        if name == names[0]:
            return None
        checkpoint = self._ledger.entry(names[names.index(name) - 1]).checkpoint
        return None if checkpoint is None else self._directory / checkpoint

    def _go_back(self, step: int) -> None:
        """Go back to the newest whole checkpoint that is no later than a step; what to leave out is kept."""
        left_out = self._loop.recovery.left_out
        for message in self._checkpoints.go_back(step):
            self._journal.incident("corrupt_checkpoint", f"{message}; an older checkpoint is used")
        found = self._checkpoints.newest
        progress = read_manifest(found).progress if found is not None else None
        self._journal.progress = None if progress is None else replace(progress, left_out=left_out)
        self._journal.incident("restart", f"continues from {found.name if found is not None else 'the start'}")

    # -- between training stages ------------------------------------------------------------------------------------

    def _evaluate_start(self, engine: Engine, name: str) -> None:
        suite = self._config.stages[name].eval_suite
        untrained = self._journal.steps_done == 0 and self._ledger.start_evaluation is None
        if suite and self._config.eval.at_start and untrained:
            measured = self._evaluations.measure(engine, suite, START)
            if measured is not None:
                self._advance(transitions.with_start_evaluation(self._ledger, *measured))

    def _judge(self, engine: Engine, name: str) -> GateOutcome | None:
        """Evaluate a training stage and ask its gate, with more items as long as it wants them; return what it says."""
        suite = self._config.stages[name].eval_suite
        outcome = None
        while outcome is None or outcome.decision == GateAction.more_items:
            if suite:
                look = transitions.next_look(self._ledger, name)
                measured = self._evaluations.measure(engine, suite, name, look=look)
                if measured is None and self._config.stages[name].gate is not None:
                    raise GateBlocked(_UNMEASURED.format(name=name))
                if measured is not None:
                    self._advance(transitions.evaluated(self._ledger, name, *measured))
            outcome = self._ask(name)
            if outcome is None:
                break
        return outcome

    def _ask_gate(self, name: str) -> None:
        self._go_by(name, self._ask(name))

    def _ask(self, name: str) -> GateOutcome | None:
        """Write down and return what a training stage's gate says; None if there is no gate, or nothing to judge."""
        self._parts.heartbeat.section(Section.between)
        if self._config.stages[name].gate is None or self._ledger.entry(name).evaluation is None:
            return None
        outcome = self._gatekeeper.ask(self._ledger, name)
        self._advance(transitions.gated(self._ledger, name, outcome))
        self._journal.gate(name, outcome.decision, outcome.reasons)
        return outcome

    def _go_by(self, name: str, outcome: GateOutcome | None) -> None:
        """Let the next training stage start, or end the run."""
        if outcome is None:
            self._advance(transitions.promoted_without_gate(self._ledger, name))
        elif outcome.decision == GateAction.roll_back or outcome.decision == GateAction.roll_back:
            self._roll_back(name, outcome)
        elif outcome.decision in (GateAction.block, GateAction.ask):
            self._journal.stage("run", "blocked")
            verb = "blocks" if outcome.decision == GateAction.block else "asks a person"
            raise GateBlocked(
                f"the gate after training stage {name} {verb}: {'; '.join(outcome.reasons)}\n"
                f"  -> the weights are in {self._ledger.entry(name).checkpoint}; python -m launch.gate "
                f"{self._directory} {name} approve --by NAME --because TEXT promotes them all the same; or change the "
                "gate, or train longer in a new run; resume=auto goes on"
            )

    def _roll_back(self, name: str, outcome: GateOutcome) -> None:
        """Put a training stage's weights and reports aside, and end the run where that training stage begins.

        A start that was killed in here does it again: until the ledger says pending, the gate's word stands in it.
        """
        suffix = transitions.roll_back_suffix(self._ledger)
        self._checkpoints.put_aside(self._config.first_step(name), suffix)
        reports = self._directory / "eval" / name
        if self._is_first and reports.is_dir():
            reports.rename(reports.with_name(f"{name}{suffix}"))
        self._advance(transitions.rolled_back(self._ledger, name))
        self._journal.stage("run", "blocked")
        raise GateBlocked(
            f"the gate after training stage {name} rolls it back: {'; '.join(outcome.reasons)}\n"
            f"  -> its weights are in {self._ledger.rolled_back[-1].checkpoint}; resume=auto trains {name} again from "
            "where it began: change what it learns or how (resume.allow=[…]), or it comes out the same"
        )

    # -- bookkeeping ------------------------------------------------------------------------------------------------

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._directory))

    def _advance(self, ledger: Ledger) -> None:
        if self._is_first and ledger != self._ledger:
            commit(ledger, self._directory)
        self._ledger = ledger
