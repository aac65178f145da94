"""What was trained in which step, and when a record was used: from the step records of a run and the order of samples.

A step record says which global batch of its training stage it trained on, and the hash of what was in it. Which records
that are follows from the config and the prepared data; the hash shows that both are still those of the run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.config.schema import RunConfig
from training.data.loader import StageLoader
from training.data.shards import PreparedData
from training.errors import DataError
from training.reporting.records import StepRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """A step that had tokens of a record among its targets."""

    step: int
    training_stage: str
    attempt: int
    source: str
    sample: int
    """Index in the training stage."""
    num_targets: int
    """Tokens of the record in that sample."""
    skipped: bool
    """Whether the step changed nothing."""


class SampleLedger:
    """The samples of a run's steps.

    Args:
        prepared: the run's data.
        config: of the run.
        steps: its step records; of a step that was done again, the later one.

    Raises:
        DataError: the data is not that of the run, or a record does not say what was trained on.
    """

    def __init__(self, prepared: PreparedData, config: RunConfig, steps: Iterable[StepRecord]) -> None:
        self._steps: dict[str, dict[int, StepRecord]] = {}
        for step in steps:
            if step.batch is None:
                raise DataError(
                    f"step {step.step}: an earlier version wrote its record, which does not say which batch it was\n"
                    "  -> only later runs can be asked"
                )
            self._steps.setdefault(step.stage, {})[step.batch] = step
        self._config = config
        left_out = {name: self._left_out(name) for name in self._steps}
        self._loaders = {name: StageLoader(prepared, config, name, left_out=left_out) for name in self._steps}
        self._prepared = prepared

    def _left_out(self, training_stage: str) -> int:
        trained = self._steps[training_stage]
        return max(trained) + 1 - len(trained)

    def uses(self, record_id: str) -> list[Use]:
        """Return every use of the records with an id, of any source, in the order of steps.

        Raises:
            DataError: no source has a training record of that id; the data or the config is not that of the run.
        """
        found: list[Use] = []
        is_known = False
        for name in self._prepared.manifest.sources:
            records = self._prepared.train(name).records_with_id(record_id)
            is_known |= bool(records)
            for training_stage in self._steps:
                found += self._uses_in(training_stage, name, records)
        if not is_known:
            raise DataError(self._unknown(record_id))
        return sorted(found, key=lambda use: (use.step, use.sample))

    def check(self, training_stage: str, batches: Iterable[int]) -> None:
        """Do nothing if steps had in them what the order of samples says.

        Raises:
            DataError: they had not.
        """
        for batch in batches:
            step, now = self._steps[training_stage][batch], self._loaders[training_stage].batch_id(batch)
            if step.batch_id != now:
                raise DataError(
                    f"step {step.step} trained on batch {step.batch_id}, the prepared data and config now give {now}\n"
                    "  -> prepare the data that the run was trained with, with the config of its run directory"
                )

    def _uses_in(self, training_stage: str, source: str, records: Sequence[int]) -> list[Use]:
        loader, steps = self._loaders[training_stage], self._steps[training_stage]
        if source not in loader.order.sources:
            return []
        units = loader.order.units(loader.order.sources.index(source))
        end = loader.batch_samples(max(steps)).stop
        found = []
        for record in records:
            for unit in units.units_of(record):
                num_targets = sum(p.stop - p.first for p in units.pieces(unit) if p.record == record)
                for sample in loader.order.samples_of(source, unit, end):
                    batch = loader.batch_of(sample)
                    if batch not in steps:  # it was left out
                        continue
                    self.check(training_stage, [batch])
                    step = steps[batch]
                    found.append(
                        Use(
                            step=step.step,
                            training_stage=training_stage,
                            attempt=step.attempt,
                            source=source,
                            sample=sample,
                            num_targets=num_targets,
                            skipped=step.skipped,
                        )
                    )
        return found

    def _unknown(self, record_id: str) -> str:
        held_out = [s for s in self._prepared.manifest.sources if self._prepared.held_out(s).records_with_id(record_id)]
        if held_out:
            return f"{record_id}: it is held out of training in source {held_out[0]}\n  -> it was never used"
        return (
            f"{record_id}: no source has a record of that id\n"
            "  -> quarantine.jsonl in the prepared data names those that were not used; ids look like "
            f"{self._example()}"
        )

    def _example(self) -> str:
        streams: Mapping[str, object] = self._prepared.manifest.sources
        first = self._prepared.train(next(iter(streams)))
        return first.id_of(0)
