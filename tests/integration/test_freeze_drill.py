"""Ranks that stop in the middle of a save: a short run of the drill."""

from tests.drills.freeze import drill


def test_a_rank_that_stops_leaves_every_committed_checkpoint_whole() -> None:
    tally = drill(60, seed=1, saves_per_start=30)
    assert tally.problems == []
    assert tally.saves == 60
    assert (tally.starts, tally.kills) == (2, 1)
    assert tally.stops_in_a_save > 10
