import statistics

from hypothesis import given
from hypothesis import strategies as st

from training.fault_tolerance.stragglers import Busy, SlowRanks, ratios

SECONDS = st.floats(0.01, 100.0)


def busy(*seconds: float) -> dict[int, Busy]:
    return {rank: Busy(place=0, seconds=own) for rank, own in enumerate(seconds)}


def watch() -> SlowRanks:
    return SlowRanks(ratio=1.3, slow_windows=3, of_windows=4)


@given(st.lists(st.tuples(st.integers(0, 2), SECONDS), min_size=1, max_size=12))
def test_each_rank_is_compared_with_the_median_of_the_others_of_its_place(ranks: list[tuple[int, float]]) -> None:
    table = {rank: Busy(place=place, seconds=seconds) for rank, (place, seconds) in enumerate(ranks)}
    found = ratios(table)
    for rank, (place, seconds) in enumerate(ranks):
        others = [other for index, (there, other) in enumerate(ranks) if there == place and index != rank]
        if others:
            assert found[rank] == (seconds / statistics.median(others), statistics.median(others))
        else:
            assert rank not in found


@given(st.lists(st.lists(st.floats(1.0, 1.29), min_size=4, max_size=4), max_size=20))
def test_ranks_that_are_nearly_alike_are_never_named(windows: list[list[float]]) -> None:
    slow = watch()
    assert all(not slow.add(busy(*seconds)) for seconds in windows)


@given(st.integers(0, 4), st.lists(st.booleans(), max_size=30))
def test_a_slow_rank_is_named_once_until_it_has_recovered(rank: int, windows: list[bool]) -> None:
    slow, named, last = watch(), False, []
    for is_slow in windows:
        last = [*last, is_slow][-4:]
        seconds = [1.0] * 5
        seconds[rank] = 2.0 if is_slow else 1.0
        found = [straggler.rank for straggler in slow.add(busy(*seconds))]
        assert found == ([rank] if sum(last) >= 3 and not named else [])
        named = (named or bool(found)) and sum(last) > 0


def test_a_pipeline_stage_that_has_more_to_do_is_not_slow() -> None:
    slow = watch()
    table = {rank: Busy(place=rank // 2, seconds=1.0 + 3 * (rank // 2)) for rank in range(4)}
    assert not any(slow.add(table) for _ in range(10))
