"""Hostile programs of a model: the drill with fewer of those that only end at their limits; and a harness that dies."""

import pytest

from tests.drills.deceiving_answers import DECEIVING, HONEST
from tests.drills.sandbox import Tally, drill, kill_harnesses
from tests.unit.eval.sandbox.available import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def test_hostile_programs_leave_the_host_as_it_was_and_deceiving_answers_are_wrong() -> None:
    tally = drill(3.0, every=3)
    assert tally.problems == []
    assert tally.programs >= 30
    assert (tally.deceiving, tally.honest) == (len(DECEIVING), len(HONEST))


def test_no_program_outlives_a_harness_that_is_killed() -> None:
    tally = Tally()
    kill_harnesses(8, 1, tally)
    assert tally.problems == []
    assert tally.killed_harnesses == 8
