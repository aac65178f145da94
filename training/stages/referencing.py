"""Which model is the reference of a training stage that learns from pairs, and where its numbers come from."""

from collections.abc import Callable, Mapping
from pathlib import Path

from training.config.schema import RunConfig
from training.data.loader import StageLoader
from training.data.stage_order import num_samples
from training.engine.base import Engine
from training.engine.process_group import ProcessGroup
from training.errors import DataError
from training.fault_tolerance.heartbeat import Heartbeat, Section
from training.stages.evaluating import weights_identity
from training.stages.interruption import InterruptibleInference, Interruption
from training.stages.journal import Journal
from training.stages.references import References, answers_of, compute, read, save


class Referencing:
    """Gives each training stage that learns from pairs its references; every rank has one and calls it alike."""

    def __init__(
        self,
        config: RunConfig,
        run_directory: Path,
        *,
        processes: ProcessGroup,
        journal: Journal,
        data_fingerprint: str,
        interruption: Interruption,
        heartbeat: Heartbeat,
    ) -> None:
        self._config = config
        self._directory = run_directory
        self._processes = processes
        self._journal = journal
        self._fingerprint = data_fingerprint
        self._interruption = interruption
        self._heartbeat = heartbeat

    def of(
        self,
        engine: Engine,
        name: str,
        loader: StageLoader,
        left_out: Mapping[str, int],
        *,
        began_with: Callable[[], Path | None],
        newest: Path | None,
    ) -> References | None:
        """Return the references of a training stage, kept ones or computed now; None if it does not learn from pairs.

        Args:
            engine: it has the weights that are gone on with, and has them again afterwards.
            name: the training stage.
            loader: its data.
            left_out: of each training stage, how many batches it leaves out.
            began_with: the checkpoint that the training stage began with, None if there is none any more.
            newest: the checkpoint that the engine was loaded from.

        Raises:
            DataError: kept ones are damaged; or some are missing, and the reference's weights are no longer there.
            StorageError: they cannot be kept.
            Stopped: the run was told to stop.
        """
        if self._config.stages[name].preference_settings is None:
            return None
        self._heartbeat.section(Section.evaluation, self._journal.steps_done)
        directory = self._directory / "references" / name
        at_start = self._journal.steps_done == self._config.first_step(name)
        weights = weights_identity(self._journal.progress) if at_start else None
        wanted = answers_of(loader, num_samples(self._config, name, left_out))
        kept = read(directory, data_fingerprint=self._fingerprint, weights=weights)
        if self._processes.agree(kept is not None and not kept.lacks(wanted)):
            return kept
        if not at_start:
            self._load_start(engine, name, began_with())
        references = compute(
            InterruptibleInference(engine, self._interruption, self._heartbeat),
            self._processes,
            loader,
            wanted,
            batch_sequences=self._config.stages[name].micro_batch_sequences,
        )
        if not at_start:
            assert newest is not None
            engine.load(newest)
        if self._processes.rank == 0:
            identity = weights or "the checkpoint that the training stage began with"
            save(references, directory, data_fingerprint=self._fingerprint, weights=identity)
        return references

    def _load_start(self, engine: Engine, name: str, checkpoint: Path | None) -> None:
        if checkpoint is None or not checkpoint.is_dir():
            raise DataError(
                f"training stage {name}: the reference's log-probabilities are not in {self._directory}/references "
                f"and the checkpoint it began with is not there to compute them ({checkpoint})\n"
                "  -> restore one of both, or start a new run"
            )
        engine.load(checkpoint)
