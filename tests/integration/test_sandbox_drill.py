"""Hostile programs of a model: the drill with fewer of those that only end at their limits; and a harness that dies."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.drills.deceiving_answers import DECEIVING, HONEST
from tests.drills.host_watch import Watch
from tests.drills.sandbox import drill
from tests.unit.eval.sandbox.available import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
REPOSITORY = Path(__file__).parents[2]


def test_hostile_programs_leave_the_host_as_it_was_and_deceiving_answers_are_wrong() -> None:
    tally = drill(3.0, every=3)
    assert tally.problems == []
    assert tally.programs >= 30
    assert (tally.deceiving, tally.honest) == (len(DECEIVING), len(HONEST))


def test_no_program_outlives_a_harness_that_is_killed() -> None:
    code = (
        "from eval.sandbox.limits import Limits\n"
        "from eval.sandbox.running import run_program\n"
        "run_program('import time; time.sleep(10**6)', limits=Limits(wall_seconds=1e6))"
    )
    watch = Watch()
    harness = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    try:
        while not watch.left():
            assert harness.poll() is None
            time.sleep(0.05)
    finally:
        harness.send_signal(signal.SIGKILL)
        harness.wait(timeout=60)
    while watch.left():  # pytest's limit is the limit
        time.sleep(0.05)
