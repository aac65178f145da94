"""An endpoint and its client that are killed, stopped and refused: a short run of the drill."""

import pytest

from tests.drills.endpoint import drill
from tests.real_weights import COMMAND, SMOLLM2


@pytest.mark.timeout(300)
def test_every_answer_arrives_and_none_is_paid_for_in_silence() -> None:
    if not SMOLLM2.exists():
        pytest.fail(f"{SMOLLM2} is not there: {COMMAND}")
    tally = drill(12, seed=3, between=(1, 2))
    assert tally.problems == []
    assert min(tally.client_kills, tally.server_kills, tally.server_stops, tally.refused) >= 1
