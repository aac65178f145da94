"""Which unit of which source each sample of a training stage is, and the other way round."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from training.config.schema import RunConfig, StageConfig
from training.data.mixture import MixtureSchedule
from training.data.order import UnitOrder
from training.data.shards import PreparedData
from training.data.units import Units, open_units
from training.errors import DataError

NOTHING_LEFT_OUT: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    units: Units
    order: UnitOrder
    first_draw: int
    """Draws that earlier training stages have taken from the same units."""


class StageOrder:
    """The order of one training stage's samples: a pure function of the config and the prepared data.

    Args:
        sources: name -> units, in the order of `schedule.sources`.
        schedule: the mixture.
        first_sample: index in the run of the training stage's first sample.
    """

    def __init__(self, sources: Mapping[str, _Source], schedule: MixtureSchedule, first_sample: int) -> None:
        self._schedule = schedule
        self._sources = list(sources.values())
        self.sources = list(sources)
        """Names; places in `places` refer to them."""
        self.first_sample = first_sample

    def places(self, samples: np.ndarray) -> np.ndarray:
        """Return a row (place of the source, unit) for each index of a sample in the training stage."""
        source_indices, draws = self._schedule.draws(samples)
        units = np.empty_like(draws)
        for i, source in enumerate(self._sources):
            here = source_indices == i
            units[here] = source.order.units(source.first_draw + draws[here])
        return np.stack([source_indices, units], axis=1)

    def units(self, source: int) -> Units:
        """Return the units of a source, by its place."""
        return self._sources[source].units

    def samples_of(self, source: str, unit: int, num_samples: int) -> list[int]:
        """Return which of the first `num_samples` samples are a unit of a source, in order."""
        this, end = self._sources[self.sources.index(source)], self._schedule.counts(num_samples)[source]
        draws = [draw - this.first_draw for draw in this.order.draws_of(unit, this.first_draw + end)]
        return sorted(self._schedule.sample_of(source, draw) for draw in draws if draw >= 0)

    def counts(self, num_samples: int) -> dict[str, int]:
        """Return how many of the first `num_samples` samples come from each source."""
        return self._schedule.counts(num_samples)

    def key(self, source: str) -> tuple[int | str, ...] | None:
        """Return what a source's order is keyed by; None if the training stage does not draw from it."""
        return self._sources[self.sources.index(source)].units.key if source in self.sources else None


def stage_order(
    prepared: PreparedData, config: RunConfig, training_stage: str, left_out: Mapping[str, int] = NOTHING_LEFT_OUT
) -> StageOrder:
    """Return the order of a training stage's samples; it goes on where earlier training stages have stopped.

    Args:
        prepared: the data.
        config: the run.
        training_stage: its name.
        left_out: of each training stage, how many batches it leaves out and so draws more than its steps.

    Raises:
        DataError: a source is not prepared, or gives no sample; the limits of epochs leave too little.
    """
    names = list(config.stages)
    earlier: dict[str, StageOrder] = {}
    for name in names[: names.index(training_stage) + 1]:
        earlier[name] = _order(prepared, config, name, left_out, earlier)
    return earlier[training_stage]


def _order(
    prepared: PreparedData,
    config: RunConfig,
    training_stage: str,
    left_out: Mapping[str, int],
    earlier: Mapping[str, StageOrder],
) -> StageOrder:
    stage, key = config.stages[training_stage], f"stages.{training_stage}"
    drawn = {name: num_samples(config, name, left_out) for name in earlier}
    first_sample = sum(drawn.values())
    names = sorted({*stage.mixture, *(source for change in stage.mixture_changes for source in change.mixture)})
    units = {name: _units(prepared, stage, name, f"{key}.mixture") for name in names}
    schedule = MixtureSchedule(
        stage.mixture,
        stage.mixture_changes,
        most_draws={name: int(times * units[name].num_units) for name, times in stage.max_epochs.items()},
        planned_samples=num_samples(config, training_stage, NOTHING_LEFT_OUT),
        num_samples=num_samples(config, training_stage, left_out),
        config_key=key,
        seed=config.run.seed,
        first_sample=first_sample,
    )
    sources = {
        name: _Source(
            units=units[name],
            order=UnitOrder(units[name].num_units, config.run.seed, *units[name].key),
            first_draw=sum(
                order.counts(drawn[other])[name]
                for other, order in earlier.items()
                if order.key(name) == units[name].key
            ),
        )
        for name in schedule.sources
    }
    return StageOrder(sources, schedule, first_sample)


def num_samples(config: RunConfig, training_stage: str, left_out: Mapping[str, int]) -> int:
    """Return the samples that a training stage draws, those it leaves out too."""
    batches = config.num_steps(training_stage) + left_out.get(training_stage, 0)
    return config.batch_sizes(training_stage).samples_before(batches)


def _units(prepared: PreparedData, stage: StageConfig, source: str, key: str) -> Units:
    units = open_units(prepared, stage, source, root=prepared.directory.parent)
    if not units.num_units:
        tokens, length = units.stream.num_tokens, stage.sequence_length
        raise DataError(
            f"{key}.{source}: its {tokens} training tokens are less than one sequence of {length} + 1, or none of its "
            "records can be used\n"
            "  -> change sequence_length, lower min_document_tokens, or give the source more documents"
        )
    return units
