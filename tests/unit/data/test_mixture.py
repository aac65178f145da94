from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.stage_schema import MixtureChange
from training.data.mixture import MixtureSchedule
from training.data.order import BLOCK_SAMPLES
from training.errors import DataError

WEIGHTS = {"web": 0.5, "code": 0.25, "books": 0.15, "law": 0.07, "maths": 0.03}


def schedule(
    weights: Mapping[str, float],
    changes: Sequence[MixtureChange] = (),
    most_draws: Mapping[str, int] | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
) -> MixtureSchedule:
    return MixtureSchedule(
        weights,
        changes,
        most_draws=most_draws or {},
        planned_samples=num_samples,
        num_samples=num_samples,
        config_key="stages.s",
        seed=seed,
        first_sample=0,
    )


def drawn(this: MixtureSchedule, num_samples: int, first: int = 0) -> list[str]:
    return [this.sources[place] for place in this.draws(np.arange(first, num_samples))[0]]


def test_shares_over_a_million_samples_are_the_weights() -> None:
    counts = Counter(drawn(schedule(WEIGHTS, num_samples=10**6), 10**6))
    for source, weight in WEIGHTS.items():
        assert abs(counts[source] / 10**6 - weight) <= 1e-6, "one sample in a million, where 0.1 % is asked for"


def test_a_change_of_weights_begins_at_its_sample() -> None:
    this = schedule({"a": 1.0, "b": 1.0}, [MixtureChange(from_fraction=0.3, mixture={"b": 1.0, "c": 3.0})])
    assert Counter(drawn(this, 3000)) == {"a": 1500, "b": 1500}
    assert Counter(drawn(this, 10_000, first=3000)) == {"b": 1750, "c": 5250}


def test_a_source_that_is_used_up_leaves_its_share_to_the_others() -> None:
    this = schedule({"a": 0.5, "b": 0.3, "c": 0.2}, most_draws={"a": 20_000, "c": 10_000}, num_samples=100_000)
    sources = drawn(this, 100_000)
    assert Counter(sources) == {"a": 20_000, "c": 10_000, "b": 70_000}
    last_a, last_c = (max(i for i, source in enumerate(sources) if source == name) for name in "ac")
    assert last_a < last_c
    between = Counter(sources[last_a + 1 : last_c + 1])
    assert between["b"] / between["c"] == pytest.approx(1.5, rel=0.02)


def test_limits_that_leave_too_little_are_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"stages\.s\.max_epochs: after 300 of 10,000 samples.*\n.*raise"):
        schedule({"a": 1.0, "b": 2.0}, most_draws={"a": 100, "b": 200})


@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 1.0), min_size=1), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 3000)),
    st.integers(1, 3 * BLOCK_SAMPLES),
    st.integers(),
)
def test_every_draw_of_a_source_comes_once_and_in_order(
    weights: list[dict[str, float]], most_draws: dict[str, int], num_samples: int, seed: int
) -> None:
    changes = [
        MixtureChange(from_fraction=(place + 1) / len(weights), mixture={**mixture, "d": 1.0})
        for place, mixture in enumerate(weights[1:])
    ]
    this = schedule({**weights[0], "d": 1.0}, changes, most_draws, num_samples, seed)
    places, draws = this.draws(np.arange(num_samples))
    counts = this.counts(num_samples)
    for place, source in enumerate(this.sources):
        of_source = draws[places == place]
        assert np.array_equal(of_source, np.arange(counts[source]))
        assert counts[source] <= most_draws.get(source, num_samples)
    for sample in {0, num_samples // 2, num_samples - 1}:
        assert this.sample_of(this.sources[places[sample]], int(draws[sample])) == sample
    again = schedule({**weights[0], "d": 1.0}, changes, most_draws, num_samples, seed)
    assert np.array_equal(again.draws(np.arange(num_samples)[::-1])[1], draws[::-1])
