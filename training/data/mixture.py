"""The mixture of a training stage from its first sample to its last: phases, each with weights of its own.

A phase begins where the config says so (`mixture_changes`) or where a source has been gone through as often as it may
(`max_epochs`): from then on the others take its share. Where phases begin follows from the config and the sizes of the
sources, so the whole stays a pure function of the sample's index.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.config.stage_schema import MixtureChange
from training.data.order import Mixture
from training.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Phase:
    first_sample: int
    mixture: Mixture
    draws_before: dict[str, int]
    """Of every source of the training stage."""

    def counts(self, sample: int) -> dict[str, int]:
        """Return the draws of every source up to a sample in this phase."""
        return _sum(self.draws_before, self.mixture.counts(sample - self.first_sample))


class MixtureSchedule:
    """Which source each sample of a training stage comes from, and which draw of that source it is.

    Args:
        weights: of the beginning; source name -> weight.
        changes: other weights from later points on.
        most_draws: source name -> how often it may be drawn; a source that is not named has no limit.
        planned_samples: of the training stage, what the points of `changes` are shares of.
        num_samples: that have to be there: those planned, and others in the place of batches that are left out.
        config_key: dotted path of the training stage, for messages.
        seed: the run's seed.
        first_sample: index in the run of the sample that has index 0 here.

    Raises:
        ConfigError: weights from which no mixture follows.
        DataError: the limits leave less than `num_samples`.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        changes: Sequence[MixtureChange] = (),
        *,
        most_draws: Mapping[str, int],
        planned_samples: int,
        num_samples: int,
        config_key: str,
        seed: int,
        first_sample: int,
    ) -> None:
        self.sources = sorted({*weights, *(source for change in changes for source in change.mixture)})
        begins = [0, *(round(change.from_fraction * planned_samples) for change in changes)]
        keys = ["mixture", *(f"mixture_changes.{place}.mixture" for place in range(len(changes)))]
        mixtures = [weights, *(change.mixture for change in changes)]
        ends = [*begins[1:], max(num_samples, begins[-1] + 1)]
        self._phases: list[_Phase] = []
        draws = dict.fromkeys(self.sources, 0)
        for begin, end, key, given in zip(begins, ends, keys, mixtures, strict=True):
            while begin < end:
                left = {s: w for s, w in given.items() if w and draws[s] < most_draws.get(s, draws[s] + 1)}
                if any(given.values()) and not left:
                    raise DataError(_used_up(config_key, begin, num_samples, most_draws))
                mixture = Mixture(
                    left or given, config_key=f"{config_key}.{key}", seed=seed, first_sample=first_sample + begin
                )
                phase = _Phase(first_sample=begin, mixture=mixture, draws_before=draws)
                self._phases.append(phase)
                limited = [source for source in left if source in most_draws]
                begin = min([end, *(_used_up_at(phase, source, most_draws) for source in limited)])
                draws = phase.counts(begin)
        self._first_samples = [phase.first_sample for phase in self._phases]

    def draws(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for sample indices, the place of their source in `sources` and which draw of that source they are."""
        source_indices, draw_indices = np.empty_like(samples), np.empty_like(samples)
        numbers = np.searchsorted(self._first_samples, samples, side="right") - 1
        for number in np.unique(numbers):
            here, phase = numbers == number, self._phases[number]
            places, draws = phase.mixture.draws(samples[here] - phase.first_sample)
            source_indices[here] = np.array([self.sources.index(s) for s in phase.mixture.sources])[places]
            draw_indices[here] = draws + np.array([phase.draws_before[s] for s in phase.mixture.sources])[places]
        return source_indices, draw_indices

    def counts(self, num_samples: int) -> dict[str, int]:
        """Return how many of the first `num_samples` samples come from each source."""
        return self._phases[bisect_right(self._first_samples, num_samples) - 1].counts(num_samples)

    def sample_of(self, source: str, draw: int) -> int:
        """Return the index of the sample that is a draw of a source."""
        number = bisect_right([phase.draws_before[source] for phase in self._phases], draw) - 1
        phase = self._phases[number]
        return phase.first_sample + phase.mixture.sample_of(source, draw - phase.draws_before[source])


def _used_up_at(phase: _Phase, source: str, most_draws: Mapping[str, int]) -> int:
    """Return the sample from which on a source of a phase may not be drawn any more."""
    last_draw = most_draws[source] - phase.draws_before[source] - 1
    return phase.first_sample + phase.mixture.sample_of(source, last_draw) + 1


def _used_up(key: str, sample: int, num_samples: int, most_draws: Mapping[str, int]) -> str:
    return (
        f"{key}.max_epochs: after {sample:,} of {num_samples:,} samples every source of the mixture has been gone "
        f"through as often as it may ({dict(most_draws)} samples)\n"
        f"  -> raise {key}.max_epochs, lower {key}.tokens, or add a source without a limit"
    )


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {source: number + other.get(source, 0) for source, number in one.items()}
