"""Runs that are killed over and over end as the run that nobody disturbed; `make drill` does it 200 times.

The ranks are forked, so that a start takes a second; tests/integration/test_kill_and_resume.py starts them as users do.
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.drills.campaign import DrilledRun
from tests.drills.drill_run import Reference, committed, make_reference
from tests.drills.kill import STAGE_STEPS, merged, random_kills, summary
from tests.drills.moments import Aim, Place, wait_for
from tests.drills.points import cases, run_points, table
from tests.drills.starts import ForkServer

KILLS = int(os.environ.get("AUTARKY_KILLS", "10"))


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, root: Path) -> Reference:
    return make_reference(server, root, STAGE_STEPS)


def test_random_kills_make_no_difference(server: ForkServer, undisturbed: Reference, root: Path) -> None:
    outcomes = random_kills(server, undisturbed, root, number=KILLS, seed=0)
    print(summary(outcomes, seconds=0))
    assert sum(len(outcome.kills) for outcome in outcomes) == KILLS
    assert merged(outcomes).all() == []


def test_a_kill_at_any_point_of_a_save_leaves_the_old_commit_or_the_new_one(
    server: ForkServer, undisturbed: Reference, root: Path
) -> None:
    rows, outcome = run_points(server, undisturbed, root, training_stages=["anneal"])
    print(table(rows))
    assert outcome.findings.all() == []
    assert [(row.point, row.rank) for row in rows] == list(cases())
    assert {row.commit for row in rows} == {"old", "new"}


@pytest.fixture
def killed(server: ForkServer, undisturbed: Reference, root: Path) -> DrilledRun:
    """A run with at least three committed steps, just killed; what it left is not yet checked."""
    run = DrilledRun(server, undisturbed, root)
    started, watch = run.start()
    aim = Aim(victim="launcher", place=Place.training, count=4, delay_seconds=0)
    assert wait_for(aim, watch, has_ended=run.has_ended, limit_seconds=100)
    started.kill("launcher")
    assert not server.wait(30).processes
    return run


def test_the_drill_notices_a_lost_step(killed: DrilledRun) -> None:
    seen = killed.steps
    shutil.rmtree(committed(killed.directory)[-1])
    killed.end(seen=seen)
    (sentence,) = killed.findings.lost_steps
    assert f"step {seen[-1]} was committed and is gone" in sentence


def test_the_drill_notices_a_changed_bit(killed: DrilledRun) -> None:
    path = next(committed(killed.directory)[-1].glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    killed.end(seen=killed.steps)
    assert len(killed.findings.differences) == 1


def test_the_drill_notices_a_start_that_goes_back_too_far(server: ForkServer, killed: DrilledRun) -> None:
    killed.end(seen=killed.steps)
    newest = committed(killed.directory)[-1]
    hidden = newest.with_name("hidden")
    started, watch = killed.start()
    newest.rename(hidden)  # before the ranks, which have just been forked, can look
    aim = Aim(victim="launcher", place=Place.training, count=1, delay_seconds=0)
    assert wait_for(aim, watch, has_ended=killed.has_ended, limit_seconds=100)
    started.kill("launcher")
    killed.end(seen=[])
    assert any("was committed" in sentence for sentence in killed.findings.lost_steps)
