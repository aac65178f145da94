from pathlib import Path

from tests.drills.sample_ledger import KILLED_AFTER, NUM_STEPS, drill


def test_a_run_that_is_killed_and_resized_trains_on_the_same_samples(tmp_path: Path) -> None:
    found = drill(tmp_path)
    assert found.problems == []
    assert found.kills == len(KILLED_AFTER)
    assert found.steps == NUM_STEPS
    assert found.uses > 100
    assert found.epochs["kjv"] > 2, "kills within one epoch alone show nothing of the next one's order"
