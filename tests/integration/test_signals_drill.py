"""Runs that are told to stop in every phase lose nothing; `make drill` does it 100 times in each.

The ranks are forked, so that a start takes a second; tests/integration/test_signals.py starts them as users do.
"""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.drills.campaign import DrilledRun
from tests.drills.drill_run import Reference, make_reference
from tests.drills.moments import Aim, Place, wait_for
from tests.drills.phases import Phase
from tests.drills.signals import STAGE_STEPS, all_findings, stop_everywhere, summary
from tests.drills.starts import ForkServer, Started
from training.errors import ExitCode

STOPS = int(os.environ.get("AUTARKY_STOPS", "1"))


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, root: Path) -> Reference:
    return make_reference(server, root, STAGE_STEPS)


def test_a_signal_in_any_phase_is_honoured_and_no_step_is_lost(
    server: ForkServer, undisturbed: Reference, root: Path
) -> None:
    outcomes = stop_everywhere(server, undisturbed, root, count=STOPS, too_short=STOPS, seed=0)
    print(summary(outcomes, seconds=0))
    assert all_findings(outcomes) == []
    stops = [stop for outcome in outcomes for stop in outcome.stops]
    per_phase = Counter(stop.phase for stop in stops if not stop.too_short)
    assert set(per_phase) == set(Phase)
    assert min(per_phase.values()) >= STOPS
    assert all(stop.honoured and stop.steps_lost == 0 for stop in stops if not stop.too_short)


def end(run: DrilledRun, started: Started, *, seen: list[int]) -> tuple[int | None, ...]:
    """Wait for the ranks and return their exit codes."""
    left = run.end(seen=seen)
    assert left is not None
    return tuple(left.exit_codes.get(pid) for pid in started.ranks)


def test_a_rank_that_is_told_when_its_peer_has_died_ends_as_one_that_lost_it(
    server: ForkServer, undisturbed: Reference, root: Path
) -> None:
    run = DrilledRun(server, undisturbed, root)
    started, watch = run.start()
    aim = Aim(victim="", place=Place.training, count=2, delay_seconds=0)
    assert wait_for(aim, watch, has_ended=run.has_ended, limit_seconds=100)
    seen = run.steps
    started.kill("rank 1")
    started.send("rank 0", signal.SIGTERM)
    assert end(run, started, seen=seen) == (ExitCode.PEER_LOST, -signal.SIGKILL)
    assert run.findings.all() == []
    run.finish()
    assert run.findings.all() == []


def test_a_rank_whose_peer_died_before_they_met_leaves_when_its_launcher_tells_it(
    server: ForkServer, undisturbed: Reference, root: Path
) -> None:
    run = DrilledRun(server, undisturbed, root)
    started, _ = run.start()
    started.kill("rank 1")
    assert end(run, started, seen=[]) == (ExitCode.STOPPED, -signal.SIGKILL)
