"""A run's checkpoints: when to save, what to do when a save fails, what to keep, and what to go on from."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from training.checkpoint.catalog import (
    Folders,
    committed,
    newest_whole,
    prune,
    remove_after,
    remove_torsos,
    set_aside_after,
    step_of,
)
from training.checkpoint.manifest import Progress
from training.checkpoint.ranks import do_together
from training.checkpoint.saver import SaveOutcome, Saver
from training.config.run_directory import checkpoint_folders
from training.config.schema import RunConfig
from training.engine.base import Engine
from training.engine.process_group import ProcessGroup
from training.errors import LossSpike, SaveFailed, StorageError
from training.fault_tolerance.heartbeat import Heartbeat, Section
from training.reporting.records import CheckpointRecord, IncidentRecord
from training.reporting.reporter import Reporter

_LONGEST_PAUSE_SECONDS = 60.0
_POLL_SECONDS = 0.05
_BEAT_SECONDS = 0.5


class Checkpointing:
    """What the runner asks to save and to find; every rank has one and calls it alike.

    A failed save costs nothing but the checkpoint: it becomes an incident, training goes on, and the next try comes
    after 1, 2, 4 … `checkpoint.every_steps` steps, at the end of a training stage after 1, 2, 4 … seconds. After
    `checkpoint.max_failed_saves` in a row the run stops.

    A save that still goes on when the next one is due holds training up for `checkpoint.max_stall_seconds` at most.

    Args:
        config: the run.
        run_directory: its directory.
        saver: writes.
        processes: the job.
        reporter: takes the records.
        attempt: how often the run directory was started before.
        check_state: raises if the state may not be saved; collective.
    """

    def __init__(
        self,
        config: RunConfig,
        run_directory: Path,
        *,
        heartbeat: Heartbeat,
        saver: Saver,
        processes: ProcessGroup,
        reporter: Reporter,
        attempt: int,
        check_state: Callable[[Engine], None] = lambda _engine: None,
    ) -> None:
        self.newest: Path | None = None
        """The newest committed checkpoint that this start knows of."""
        self._config = config.checkpoint
        self._directory = run_directory
        permanent, *fast = checkpoint_folders(config, run_directory)
        self._folders = Folders(permanent=permanent, fast=fast[0] if fast else None)
        self._last_steps = frozenset(config.first_step(name) + config.num_steps(name) for name in config.stages)
        self._every_permanent = config.checkpoint.permanent_every_steps
        self._heartbeat = heartbeat
        self._saver = saver
        self._processes = processes
        self._reporter = reporter
        self._attempt = attempt
        self._check_state = check_state
        self._failed_saves = 0
        self._next_try = 0
        """After a failed save: the step of the next try."""
        self._is_overdue = False
        """A save was due, but the one before had not ended; it is made as soon as that one has."""
        self._saving: Progress | None = None

    def find(self) -> list[str]:
        """Find the newest whole checkpoint, now `newest`; return a message for each newer one that is damaged.

        Raises:
            CorruptCheckpoint: checkpoints exist, but none is whole, or the storage they lie on is gone.
            StorageError: fast storage is not there for all ranks.
        """
        do_together(self._processes, self._open_folders)
        fast = self._folders.fast
        if not self._processes.agree(fast is None or fast.is_dir()):
            raise StorageError(
                f"checkpoint.fast_root: not every node sees {fast}\n"
                "  -> give a folder that all nodes share, or checkpoint.fast_root=null"
            )
        self.newest, rejected = newest_whole(self._folders.all(), self._processes)
        return rejected

    def go_back(self, step: int) -> list[str]:
        """Forget what was saved after a step; `newest` is what to go on from, None if that is the start of the run.

        Returns a message for each checkpoint that was found damaged.

        Raises:
            LossSpike: none of this step or an earlier one is left, and the run has saved since its start.
            CorruptCheckpoint: none of those is whole.
            StorageError: a later one cannot be removed.
        """
        self.settle()
        do_together(self._processes, lambda: self._remove_after(step))
        return self.find()

    def put_aside(self, step: int, suffix: str) -> None:
        """Give the newest checkpoint another name if it is later than a step, and remove others that are.

        Raises:
            StorageError: on every rank: one cannot be renamed or removed.
        """
        self.settle()

        def put() -> None:
            if self._processes.rank == 0:
                set_aside_after(self._folders.all(), step, suffix)

        do_together(self._processes, put)

    def _remove_after(self, step: int) -> None:
        if self._processes.rank > 0:
            return
        folders = self._folders.all()
        if step >= self._config.every_steps and all(step_of(path) > step for path in committed(*folders)):
            raise LossSpike(
                f"the run has to go back to step {step}, and no checkpoint of it or an earlier one is left\n"
                "  -> a larger checkpoint.keep_last keeps them; continue with another fault_tolerance.recovery "
                "(resume.allow=[fault_tolerance.recovery])"
            )
        remove_after(folders, step)

    def after_step(self, engine: Engine, progress: Progress) -> None:
        """Take note of a save that has ended, and begin one if it is time.

        Raises:
            StorageError: too many saves in a row have failed.
        """
        if self._saver.in_flight and self._all_have_written():
            self._finish()
        if self._is_overdue or self._is_time(progress.step):
            if self._saver.in_flight:
                if not self._ends_in_time(progress):
                    self._is_overdue = True
                    return
                self._finish()
            self._is_overdue = False
            self._begin(engine, progress)
            if not self._config.asynchronous:
                self._finish()

    def save_now(self, engine: Engine, progress: Progress) -> Path:
        """Return the committed checkpoint of this step, made if it is not there; tries again if it fails.

        Raises:
            StorageError: too many saves in a row have failed.
        """
        self.settle()
        while self.newest is None or step_of(self.newest) != progress.step:
            if self._failed_saves:
                self._pause(min(2.0 ** (self._failed_saves - 1), _LONGEST_PAUSE_SECONDS))
            self._begin(engine, progress)
            self.settle()
        return self.newest

    def _pause(self, seconds: float) -> None:
        """Give the storage time, and say all the while that this is no hang."""
        deadline = time.monotonic() + seconds
        with self._in_save():
            while (left := deadline - time.monotonic()) > 0:
                self._heartbeat.go_on()
                time.sleep(min(left, _BEAT_SECONDS))

    def settle(self) -> None:
        """Wait for the save in flight, if there is one.

        Raises:
            StorageError: too many saves in a row have failed.
        """
        if self._saver.in_flight:
            self._finish()

    def relative(self, checkpoint: Path) -> str:
        """Return a checkpoint's path for people and for the ledger: relative to the run directory if it is in there."""
        inside = checkpoint.is_relative_to(self._directory)
        return str(checkpoint.relative_to(self._directory)) if inside else str(checkpoint)

    def _open_folders(self) -> None:
        if self._processes.rank > 0:
            return
        remove_torsos(self._folders)
        self._folders.check_fast_storage()
        self._folders.open()

    @contextmanager
    def _in_save(self) -> Iterator[None]:
        """Let the watchdog know that what is done in here is part of a save."""
        section = self._heartbeat.doing.section
        self._heartbeat.section(Section.save)
        yield
        self._heartbeat.section(section)

    def _finish(self) -> None:
        with self._in_save():
            outcome = self._saver.finish()
        self._note(outcome)

    def _begin(self, engine: Engine, progress: Progress) -> None:
        self._check_state(engine)
        directory = self._folders.of(progress.step, self._kept_for_good(progress.step))
        self._saving = progress
        with self._in_save():
            self._saver.begin(engine.snapshot, directory=directory, progress=progress, layout=engine.layout.describe())

    def _is_time(self, step: int) -> bool:
        return step >= self._next_try if self._next_try else step % self._config.every_steps == 0

    def _kept_for_good(self, step: int) -> frozenset[int]:
        """Return the steps up to this one whose checkpoints are never removed."""
        every = self._every_permanent
        return self._last_steps | (frozenset(range(0, step + 1, every)) if every else frozenset())

    def _ends_in_time(self, progress: Progress) -> bool:
        """Return on every rank alike whether the save in flight ends before training has waited too long for it.

        Ranks count polls, not seconds, so that none of them gives up alone; who has waited in vain only looks.
        """
        assert self._saving is not None
        if self._is_overdue:
            return False
        for _ in range(round(self._config.max_stall_seconds / _POLL_SECONDS)):
            if self._all_have_written():
                return True
            time.sleep(_POLL_SECONDS)
        self._incident(
            progress,
            "save_late",
            f"the save of step {self._saving.step} has not ended, so the one due now waits for it; training goes on",
        )
        return False

    def _all_have_written(self) -> bool:
        return self._processes.sum([float(self._saver.is_written)])[0] == self._processes.world_size

    def _note(self, outcome: SaveOutcome) -> None:
        assert self._saving is not None
        if outcome.failure is not None:
            self._failed(outcome.failure, self._saving)
            return
        self._failed_saves = self._next_try = 0
        self.newest = outcome.checkpoint
        if self._processes.rank == 0:
            self._record(outcome, self._saving)
            self._prune(self._saving)

    def _failed(self, failure: SaveFailed, progress: Progress) -> None:
        self._failed_saves += 1
        self._incident(progress, "save_failed", f"{failure} (failure {self._failed_saves} in a row)")
        if self._failed_saves >= self._config.max_failed_saves:
            raise failure
        self._next_try = progress.step + min(2 ** (self._failed_saves - 1), self._config.every_steps)

    def _prune(self, progress: Progress) -> None:
        self._saver.reach("before_prune", progress.step)
        try:
            prune(
                self._folders.all(),
                keep_last=self._config.keep_last,
                keep_steps=self._kept_for_good(progress.step),
            )
        except (StorageError, OSError) as error:  # costs space, not the run
            self._incident(progress, "prune_failed", str(error))
        self._saver.reach("after_prune", progress.step)

    def _record(self, outcome: SaveOutcome, progress: Progress) -> None:
        assert outcome.checkpoint is not None
        try:
            num_bytes = sum(path.stat().st_size for path in outcome.checkpoint.iterdir())
        except OSError as error:  # the storage has gone since; if it stays away, the next save says so
            self._incident(
                progress,
                "save_failed",
                f"{outcome.checkpoint.name} was committed and cannot be looked at since: {error}",
            )
            return
        self._reporter.record(
            CheckpointRecord(
                step=progress.step,
                stage=progress.training_stage,
                directory=self.relative(outcome.checkpoint),
                num_bytes=num_bytes,
                seconds=outcome.write_seconds,
                stall_seconds=outcome.stall_seconds,
                bytes_per_second=num_bytes / outcome.write_seconds,
                attempt=self._attempt,
            )
        )

    def _incident(self, progress: Progress, what: str, message: str) -> None:
        self._reporter.record(
            IncidentRecord(
                step=progress.step, stage=progress.training_stage, what=what, message=message, attempt=self._attempt
            )
        )
