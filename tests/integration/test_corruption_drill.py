"""The drill of damaged checkpoints, a few rounds of it; and the same through a whole run."""

from tests.drills.corruption import drill
from tests.drills.damages import DAMAGES


def test_damage_is_found_in_time_and_good_checkpoints_are_not_suspected() -> None:
    tally = drill(5 * len(DAMAGES), 60, seed=1)
    assert tally.problems == []
    assert len(tally.damages) == len(DAMAGES)
    assert tally.all_damaged == len(DAMAGES)
    assert tally.loads == 60
