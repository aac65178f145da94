"""Contestant: Autarky's engine, its saver, and its way to find, verify and load the newest checkpoint."""

from pathlib import Path

from benchmarks.checkpoint_contestant import micro_batches
from training.checkpoint.catalog import newest_whole
from training.checkpoint.manifest import Progress
from training.checkpoint.saver import Saver
from training.config.load import config_hash
from training.config.schema import RunConfig
from training.config.typed import to_plain
from training.engine import process_group
from training.engine.build import build_engine


def build(config: RunConfig, training_stage: str, variant: str) -> "AutarkyCheckpoint":
    """Return the contestant on this rank; there is one variant."""
    return AutarkyCheckpoint(config, training_stage)


class AutarkyCheckpoint:
    """See `Contestant`."""

    def __init__(self, config: RunConfig, training_stage: str) -> None:
        self._config = config
        self._training_stage = training_stage
        timeout = config.fault_tolerance.collective_timeout_seconds
        self._processes = process_group.start(timeout)
        self._engine = build_engine(config, training_stage, self._processes)
        self._saver = Saver(self._processes.with_own_group(timeout), config=to_plain(config))

    def step(self, number: int) -> float:
        """See `Contestant.step`."""
        layout = self._engine.layout
        batches = micro_batches(
            self._config,
            number,
            replica=layout.replica_of(self._processes.rank),
            num_replicas=layout.num_replicas,
        )
        return self._engine.train_batch(batches, lr=self._config.optimizer.lr).loss

    def save(self, directory: Path, step: int) -> None:
        """See `Contestant.save`; the next update waits until the state is copied to host memory."""
        stage = self._config.stages[self._training_stage]
        samples = step * stage.global_batch_sequences
        self._saver.begin(
            self._engine.snapshot,
            directory=directory,
            progress=Progress(
                step=step,
                training_stage=self._training_stage,
                stage_step=step,
                samples=samples,
                tokens=samples * stage.sequence_length,
                optimizer_updates=step,
                skips_in_a_row=0,
                lr=self._config.optimizer.lr,
                config_hash=config_hash(self._config),
                data_fingerprint="made by benchmarks.checkpoint_contestant",
            ),
            layout=self._engine.layout.describe(),
        )

    def held_seconds(self) -> float:
        """See `Contestant.held_seconds`."""
        return self._engine.snapshot.waited_seconds

    def is_written(self) -> bool:
        """See `Contestant.is_written`."""
        return self._saver.is_written

    def finish(self) -> None:
        """See `Contestant.finish`; the checkpoint is committed then.

        Raises:
            SaveFailed: it could not be written.
        """
        outcome = self._saver.finish()
        if outcome.failure is not None:
            raise outcome.failure

    def load(self, directory: Path) -> None:
        """See `Contestant.load`; every file is hashed before, as a run does when it resumes."""
        checkpoint, damaged = newest_whole([directory], self._processes)
        if checkpoint is None:
            raise RuntimeError(f"no whole checkpoint in {directory}: {damaged}")
        self._engine.load(checkpoint)
