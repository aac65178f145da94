import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.order import BLOCK_SAMPLES, Mixture, Permutation, UnitOrder
from training.errors import ConfigError

weights = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.1, 10), min_size=1)


def mixture(weights: dict[str, float], *, seed: int = 0, first_sample: int = 0) -> Mixture:
    return Mixture(weights, config_key="stages.s.mixture", seed=seed, first_sample=first_sample)


@given(st.integers(1, 5000), st.integers())
def test_a_permutation_reaches_every_place_once(size: int, seed: int) -> None:
    images = Permutation(size, seed)(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


def test_a_permutation_mixes_and_follows_its_key() -> None:
    first, second = (Permutation(10_000, seed)(np.arange(10_000)) for seed in (0, 1))
    # 10,000 positions: a random permutation has 1 fixed point on average, and neighbours are about 3,333 apart.
    assert np.count_nonzero(first == np.arange(10_000)) < 10
    assert np.abs(np.diff(first)).mean() == pytest.approx(3333, rel=0.05)
    assert np.count_nonzero(first == second) < 10


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    # Golden values: a change here changes the samples of every run that is resumed.
    assert Permutation(1000, 0, "golden")(np.arange(5)).tolist() == [970, 957, 709, 963, 898]
    sources, draws = mixture({"a": 3, "b": 1}).draws(np.arange(12))
    assert sources.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]
    assert draws.tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 6, 2, 7, 3]


@given(weights, st.integers(0, 10**6))
def test_shares_are_exact_to_less_than_one_sample_over_whole_blocks(weights: dict[str, float], blocks: int) -> None:
    counts = mixture(weights).counts(blocks * BLOCK_SAMPLES)
    assert sum(counts.values()) == blocks * BLOCK_SAMPLES
    total = sum(weights.values())
    for source, weight in weights.items():
        # 1e-5: float error of the expected share at 10^9 samples; the quotas themselves are exact fractions.
        assert abs(counts[source] - blocks * BLOCK_SAMPLES * weight / total) < 1 + 1e-5


@settings(max_examples=30)
@given(weights, st.integers(0, 5000), st.integers(0, 3))
def test_counts_are_what_was_drawn_and_draws_follow_one_another(
    weights: dict[str, float], num_samples: int, seed: int
) -> None:
    mixed = mixture(weights, seed=seed)
    sources, draws = mixed.draws(np.arange(num_samples))
    for i, (source, count) in enumerate(mixed.counts(num_samples).items()):
        assert draws[sources == i].tolist() == list(range(count)), source


@given(st.integers(0, 10**9), st.permutations(["a", "b", "c"]))
def test_a_sample_does_not_depend_on_what_is_asked_with_it(sample: int, names: list[str]) -> None:
    share = {"a": 0.5, "b": 0.3, "c": 0.2}
    alone = mixture(share).draws(np.array([sample]))
    among = mixture({name: share[name] for name in names}).draws(np.arange(sample, sample + 5))
    assert (alone[0][0], alone[1][0]) == (among[0][0], among[1][0])


def test_sources_alternate_within_a_block() -> None:
    sources, _ = mixture({"a": 1, "b": 1}).draws(np.arange(BLOCK_SAMPLES))
    # A random order of 500 + 500 changes source 500 times on average, standard deviation 16.
    assert 420 < np.count_nonzero(np.diff(sources)) < 580
    later, _ = mixture({"a": 1, "b": 1}, first_sample=7).draws(np.arange(BLOCK_SAMPLES))
    assert sources.tolist() != later.tolist()


def test_a_source_of_weight_0_is_never_drawn_and_a_tiny_one_is_refused() -> None:
    assert mixture({"a": 1, "b": 0, "c": 2}).counts(123_456)["b"] == 0
    with pytest.raises(ConfigError, match=r"stages\.s\.mixture\.b=0\.0005: .*one sample in 1000"):
        mixture({"a": 1, "b": 0.0005})
    with pytest.raises(ConfigError, match=r"stages\.s\.mixture="):
        mixture({"a": 0})
    with pytest.raises(ConfigError, match=r"stages\.s\.mixture="):
        mixture({"a": 1, "b": -0.5})


@given(st.integers(1, 10**6), st.integers(), st.data())
def test_a_permutation_can_be_asked_the_other_way_round(size: int, key: int, data: st.DataObject) -> None:
    permutation = Permutation(size, key)
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    assert np.array_equal(permutation.inverse(permutation(positions)), positions)


@given(st.integers(1, 3000), st.integers(0, 5), st.integers())
def test_an_epoch_holds_every_unit_once(size: int, epoch: int, seed: int) -> None:
    order = UnitOrder(size, seed, "a", 8)
    units = order.units(np.arange(epoch * size, (epoch + 1) * size))
    assert np.array_equal(np.sort(units), np.arange(size))


@given(st.integers(1, 50), st.integers(0, 300), st.integers())
def test_the_draws_of_a_unit_are_those_at_which_it_comes(size: int, num_draws: int, seed: int) -> None:
    order = UnitOrder(size, seed, "a")
    units = order.units(np.arange(num_draws))
    for unit in range(size):
        assert order.draws_of(unit, num_draws) == np.flatnonzero(units == unit).tolist()


def test_epochs_sources_and_sequence_lengths_have_orders_of_their_own() -> None:
    def order(source: str, sequence_length: int, first: int) -> list[int]:
        order = UnitOrder(500, 0, source, sequence_length)
        return order.units(np.arange(first, first + 500)).tolist()

    orders = [order("a", 8, 0), order("a", 8, 500), order("b", 8, 0), order("a", 16, 0)]
    assert len({tuple(o) for o in orders}) == 4


def test_a_seek_far_ahead_is_as_direct_as_the_first_sample() -> None:
    order = UnitOrder(10**9 + 7, 0, "a", 2048)
    sources, draws = mixture({"a": 0.9, "b": 0.1}).draws(np.array([10**9, 10**12]))
    units = order.units(draws)
    assert sources.shape == units.shape == (2,)
    assert (units < order.num_units).all()


@given(
    st.dictionaries(st.sampled_from("abcde"), st.floats(0.01, 1.0), min_size=1),
    st.integers(0, 10**9),
    st.integers(),
)
def test_a_draw_s_sample_is_that_in_which_it_comes(weights: dict[str, float], sample: int, seed: int) -> None:
    drawn = mixture(weights, seed=seed)
    [source], [draw] = drawn.draws(np.array([sample]))
    assert drawn.sample_of(drawn.sources[source], int(draw)) == sample
