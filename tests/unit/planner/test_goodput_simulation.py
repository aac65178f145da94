import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training.errors import ConfigError
from training.planner.checkpoint_cost import CheckpointCost
from training.planner.goodput import expected_ettr
from training.planner.goodput_simulation import SimulatedRuns, Spread, simulate
from training.planner.reliability import SECONDS_PER_DAY, Interruptions

DAY = SECONDS_PER_DAY


def run(**changes: Any) -> SimulatedRuns:
    arguments: dict[str, Any] = {
        "work_seconds": 5 * DAY,
        "interval_seconds": 1800.0,
        "checkpoint": CheckpointCost(stall_seconds=10.0, write_seconds=60.0),
        "interruptions": BUSY,
        "num_runs": 200,
    }
    return simulate(**(arguments | changes))


CHECKPOINT = CheckpointCost(stall_seconds=10.0, write_seconds=10.0)
BUSY = Interruptions(
    failures_per_day=8.0,
    detection_seconds=60.0,
    restart_seconds=200.0,
    reload_seconds=20.0,
    manual_share=0.05,
    manual_seconds=3600.0,
    node_loss_share=0.7,
    spare_nodes=8,
    repair_seconds=DAY,
    planned_per_day=1.0,
    planned_seconds=600.0,
)

jobs = st.builds(
    Interruptions,
    failures_per_day=st.just(0.0) | st.floats(0.01, 20),
    detection_seconds=st.floats(0, 600),
    restart_seconds=st.floats(0, 600),
    reload_seconds=st.floats(0, 200),
    manual_share=st.floats(0, 1),
    manual_seconds=st.floats(0, 7200),
    node_loss_share=st.floats(0, 1),
    spare_nodes=st.integers(0, 20),
    repair_seconds=st.floats(0, DAY),
    planned_per_day=st.just(0.0) | st.floats(0.01, 4),
    planned_seconds=st.floats(0, 3600),
    failure_rate_sigma=st.floats(0, 0.3),
)
checkpoints = st.builds(
    lambda stall, behind: CheckpointCost(stall_seconds=stall, write_seconds=stall + behind),
    st.floats(0, 60),
    st.floats(0, 300),
)


@settings(max_examples=40, deadline=None)
@given(jobs, checkpoints, st.floats(60, 1800), st.floats(0.01, 1), st.floats(0, 0.2), st.integers(0, 9))
def test_every_second_is_in_the_ledger_once(
    job: Interruptions, checkpoint: CheckpointCost, interval: float, days: float, work_sigma: float, seed: int
) -> None:
    runs = simulate(
        work_seconds=days * DAY,
        interval_seconds=interval,
        checkpoint=checkpoint,
        interruptions=job,
        work_sigma=work_sigma,
        num_runs=10,
        seed=seed,
    )
    np.testing.assert_allclose(runs.ledger.wall_seconds, runs.end_seconds, rtol=1e-9)
    for entry in runs.ledger.__dataclass_fields__:
        assert (getattr(runs.ledger, entry) >= -1e-6).all(), entry
    if work_sigma == 0:
        np.testing.assert_allclose(runs.ledger.compute_seconds, days * DAY, rtol=1e-9)


@given(st.floats(0.01, 3), st.floats(60, 7200), checkpoints)
@settings(deadline=None)
def test_without_failures_a_run_is_its_work_and_its_checkpoints(
    days: float, interval: float, checkpoint: CheckpointCost
) -> None:
    assume(interval > checkpoint.write_seconds)
    runs = simulate(
        work_seconds=days * DAY,
        interval_seconds=interval,
        checkpoint=checkpoint,
        interruptions=Interruptions(failures_per_day=0.0),
        num_runs=3,
    )
    between = math.ceil(days * DAY / interval - 1e-9) - 1
    expected = days * DAY + between * checkpoint.stall_seconds + checkpoint.write_seconds
    np.testing.assert_allclose(runs.end_seconds, expected, rtol=1e-9)
    assert (runs.num_failures == 0).all()


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    np.testing.assert_array_equal(run().end_seconds, run().end_seconds)
    assert not (run().end_seconds == run(seed=1).end_seconds).any()


def test_jobs_of_other_costs_meet_the_same_luck() -> None:
    # Detection takes no part in when the next failure comes, so every failure costs the difference, and nothing else.
    job = replace(BUSY, spare_nodes=100)
    quick, slow = run(interruptions=job), run(interruptions=replace(job, detection_seconds=160.0))
    np.testing.assert_array_equal(quick.num_failures, slow.num_failures)
    np.testing.assert_allclose(slow.end_seconds - quick.end_seconds, 100.0 * quick.num_failures)


@pytest.mark.parametrize(
    "worse",
    [
        {"failures_per_day": 12.0},
        {"detection_seconds": 600.0},
        {"restart_seconds": 600.0},
        {"reload_seconds": 300.0},
        {"manual_share": 0.2},
        {"manual_seconds": 7200.0},
        {"spare_nodes": 4},
        {"node_loss_share": 1.0},
        {"repair_seconds": 2 * DAY},
        {"planned_per_day": 4.0},
        {"planned_seconds": 3600.0},
    ],
    ids=lambda worse: next(iter(worse)),
)
def test_what_is_worse_ends_later_throughout(worse: dict[str, float]) -> None:
    usual, later = run(num_runs=500), run(num_runs=500, interruptions=replace(BUSY, **worse))
    for figure in ("mean", "p5", "p50", "p95"):
        assert getattr(usual.days, figure) < getattr(later.days, figure), figure


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 20), st.floats(1.5, 4), st.integers(0, 99))
def test_more_failures_end_later_on_average_with_the_same_luck(rate: float, factor: float, seed: int) -> None:
    few = run(interruptions=replace(BUSY, failures_per_day=rate), seed=seed)
    many = run(interruptions=replace(BUSY, failures_per_day=rate * factor), seed=seed)
    assert few.end_seconds.mean() < many.end_seconds.mean()
    assert few.num_failures.sum() < many.num_failures.sum()


def test_a_checkpoint_cannot_be_newer_than_its_write_took() -> None:
    # Three minutes between failures of a job that needs two to write: most checkpoints never come to hold.
    often = Interruptions(failures_per_day=480.0, node_loss_share=0.0)
    quick, slow = (
        run(
            work_seconds=0.1 * DAY,
            interval_seconds=120.0,
            interruptions=often,
            checkpoint=CheckpointCost(stall_seconds=1.0, write_seconds=write),
        )
        for write in (1.0, 120.0)
    )
    ratio = slow.ledger.lost_work_seconds.mean() / quick.ledger.lost_work_seconds.mean()
    # exp((w - s) / M) times as much time is needed for the same work (planner.goodput.expected_ettr).
    assert slow.end_seconds.mean() / quick.end_seconds.mean() == pytest.approx(math.exp(119 / 180), rel=0.05)
    assert ratio > math.exp(119 / 180)


def test_without_spares_every_lost_node_is_waited_for() -> None:
    job = replace(BUSY, spare_nodes=0, node_loss_share=1.0, planned_per_day=0.0, manual_share=0.0)
    runs = run(interruptions=job)
    waited = runs.num_failures * (job.repair_seconds - job.detection_seconds)
    np.testing.assert_allclose(runs.ledger.spare_wait_seconds, waited)


def test_spares_are_waited_for_only_when_all_are_in_repair() -> None:
    job = replace(BUSY, repair_seconds=DAY)
    assert run(interruptions=replace(job, spare_nodes=60)).ledger.spare_wait_seconds.max() == 0.0
    waits = [run(interruptions=replace(job, spare_nodes=n)).ledger.spare_wait_seconds.mean() for n in (1, 3, 6, 9)]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > DAY


def test_losses_come_no_faster_than_spares_and_one_more_are_repaired() -> None:
    # The job's own lost node is repaired beside the spares: with one spare two losses in a repair time.
    job = Interruptions(failures_per_day=500.0, spare_nodes=1, repair_seconds=DAY)
    runs = run(work_seconds=0.02 * DAY, interval_seconds=50.0, interruptions=job)
    assert (runs.num_failures > 5).any()
    assert float(runs.end_seconds.sum() / runs.num_failures.sum()) == pytest.approx(DAY / 2, rel=0.1)


def test_planned_interruptions_lose_no_work() -> None:
    job = Interruptions(failures_per_day=0.0, planned_per_day=3.0, planned_seconds=600.0, restart_seconds=100.0)
    runs = run(interruptions=job)
    assert runs.ledger.lost_work_seconds.max() == 0.0
    stops = runs.ledger.planned_seconds / 600.0
    assert stops.mean() == pytest.approx(15, rel=0.1)
    # One may come while the processes start from the last: that restart is cut short.
    assert (runs.ledger.restart_seconds <= 100.0 * stops + 1e-6).all()


def test_what_is_not_known_widens_the_distribution_and_not_its_middle() -> None:
    known, doubted = run(num_runs=1000), run(num_runs=1000, interruptions=replace(BUSY, failure_rate_sigma=0.5))
    assert doubted.days.p95 - doubted.days.p5 > 2 * (known.days.p95 - known.days.p5)
    assert doubted.days.p50 == pytest.approx(known.days.p50, rel=0.02)
    slower = run(num_runs=1000, work_sigma=0.1)
    assert slower.days.p95 / slower.days.p50 == pytest.approx(math.exp(0.1 * 1.645), rel=0.03)


def test_a_run_that_would_hardly_ever_end_is_refused() -> None:
    job = Interruptions(failures_per_day=200.0, restart_seconds=3600.0)
    assert expected_ettr(interval_seconds=600, checkpoint=CHECKPOINT, interruptions=job) < 0.01
    with pytest.raises(ConfigError, match=r"cluster\.reliability=an interruption every 0\.12 h: .*hardly ever end"):
        run(interruptions=job, checkpoint=CHECKPOINT)


def test_no_work_and_no_interval_are_refused() -> None:
    with pytest.raises(ValueError, match="every 0 s: both are above 0"):
        run(interval_seconds=0)
    with pytest.raises(ValueError, match=r"^0 s of work"):
        run(work_seconds=0)


def test_a_spread_is_the_values_quantiles() -> None:
    spread = Spread.of(np.arange(101, dtype=float))
    assert (spread.mean, spread.p5, spread.p50, spread.p95) == (50, 5, 50, 95)
    assert spread.times(2).p95 == 190
