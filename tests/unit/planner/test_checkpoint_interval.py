import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.planner.checkpoint_cost import CheckpointCost
from training.planner.checkpoint_interval import best_interval, daly_interval, simulated_interval, young_interval
from training.planner.goodput import expected_ettr, published_ettr
from training.planner.goodput_simulation import simulate
from training.planner.reliability import SECONDS_PER_DAY, Interruptions


def waited_for(stall: float) -> CheckpointCost:
    return CheckpointCost(stall_seconds=stall, write_seconds=stall)


@pytest.mark.parametrize(("mtbf_minutes", "minutes"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_daly_gets_what_he_printed(mtbf_minutes: float, minutes: float) -> None:
    # Figures 3 to 5 of the paper: 5 min to save, 10 min to restart.
    ours = daly_interval(stall_seconds=300, mtbf_seconds=mtbf_minutes * 60) / 60
    assert ours == pytest.approx(minutes, abs=0.5 if minutes > 10 else 0.05)


def test_daly_stays_at_the_time_between_failures_where_saves_take_twice_that() -> None:
    assert daly_interval(stall_seconds=200.0, mtbf_seconds=100.0) == 100.0


@given(st.floats(0.001, 0.2), st.floats(60, 1e6))
def test_daly_is_the_exact_interval_within_a_percent(ratio: float, mtbf: float) -> None:
    exact = best_interval(checkpoint=waited_for(ratio * mtbf), mtbf_seconds=mtbf)
    assert daly_interval(stall_seconds=ratio * mtbf, mtbf_seconds=mtbf) == pytest.approx(exact, rel=0.01)


@given(st.floats(1e-6, 1e-4), st.floats(60, 1e6))
def test_young_is_the_exact_interval_within_a_percent_where_saves_are_short(ratio: float, mtbf: float) -> None:
    exact = best_interval(checkpoint=waited_for(ratio * mtbf), mtbf_seconds=mtbf)
    assert young_interval(stall_seconds=ratio * mtbf, mtbf_seconds=mtbf) == pytest.approx(exact, rel=0.01)


@given(st.floats(0.001, 1.0), st.floats(600, 1e6), st.floats(0, 600), st.floats(0.2, 5))
def test_no_other_interval_trains_more(ratio: float, mtbf: float, restart: float, factor: float) -> None:
    checkpoint = waited_for(ratio * mtbf)
    job = Interruptions(failures_per_day=SECONDS_PER_DAY / mtbf, restart_seconds=restart, detection_seconds=restart)
    best = best_interval(checkpoint=checkpoint, mtbf_seconds=mtbf)

    def ettr(interval: float) -> float:
        return expected_ettr(interval_seconds=interval, checkpoint=checkpoint, interruptions=job)

    assert ettr(best * factor) <= ettr(best) * (1 + 1e-9)


def test_no_save_begins_before_the_last_one_is_written() -> None:
    slow = CheckpointCost(stall_seconds=1.0, write_seconds=1000.0)
    assert best_interval(checkpoint=slow, mtbf_seconds=3600.0) == 999.0
    quick = CheckpointCost(stall_seconds=1.0, write_seconds=50.0)
    assert best_interval(checkpoint=quick, mtbf_seconds=3600.0) == best_interval(
        checkpoint=waited_for(1.0), mtbf_seconds=3600.0
    )


def test_without_failures_nothing_is_gained_by_saving() -> None:
    assert best_interval(checkpoint=waited_for(1.0), mtbf_seconds=math.inf) == math.inf


def test_simulated_runs_end_first_at_the_exact_interval() -> None:
    checkpoint = CheckpointCost(stall_seconds=20.0, write_seconds=90.0)
    job = Interruptions(failures_per_day=8, restart_seconds=300, detection_seconds=60, node_loss_share=0.0)
    simulated = simulated_interval(work_seconds=30 * SECONDS_PER_DAY, checkpoint=checkpoint, interruptions=job)
    exact = best_interval(checkpoint=checkpoint, mtbf_seconds=job.mtbf_seconds)
    assert simulated == pytest.approx(exact, rel=0.01)


@given(st.floats(0.1, 50), st.floats(0, 900), st.floats(30, 7200), st.floats(0, 60))
def test_metas_formula_is_the_exact_mean_to_first_order(
    failures_per_day: float, restart: float, interval: float, stall: float
) -> None:
    job = Interruptions(failures_per_day=failures_per_day, restart_seconds=restart)
    exact = expected_ettr(interval_seconds=interval, checkpoint=waited_for(stall), interruptions=job)
    formula = published_ettr(
        failures_per_day=failures_per_day, restart_seconds=restart, interval_seconds=interval, write_seconds=stall
    )
    lost = (restart + interval / 2 + stall / 2) / job.mtbf_seconds
    # It leaves out terms of second order, and the stalls of steps that are lost.
    assert abs(formula - exact) <= lost**2 + stall / (interval + stall) * lost + 1e-9


def test_the_exact_mean_is_dalys_cost_function_where_saves_are_waited_for() -> None:
    mtbf, stall, interval, restart = 3600.0, 120.0, 800.0, 600.0
    job = Interruptions(failures_per_day=24.0, restart_seconds=restart)
    wall_per_interval = mtbf * math.exp(restart / mtbf) * (math.exp((interval + stall) / mtbf) - 1)
    ettr = expected_ettr(interval_seconds=interval, checkpoint=waited_for(stall), interruptions=job)
    assert ettr == pytest.approx(interval / wall_per_interval)


@pytest.mark.parametrize("write_seconds", [30.0, 300.0])
@pytest.mark.parametrize("detection_seconds", [0.0, 600.0])
def test_simulated_runs_have_the_exact_mean(write_seconds: float, detection_seconds: float) -> None:
    checkpoint = CheckpointCost(stall_seconds=30.0, write_seconds=write_seconds)
    job = Interruptions(
        failures_per_day=12.0,
        detection_seconds=detection_seconds,
        restart_seconds=300.0,
        reload_seconds=60.0,
        manual_share=0.1,
        manual_seconds=1200.0,
        node_loss_share=0.0,
    )
    runs = simulate(work_seconds=20 * SECONDS_PER_DAY, interval_seconds=900.0, checkpoint=checkpoint, interruptions=job)
    simulated = float(runs.ledger.compute_seconds.sum() / runs.end_seconds.sum())
    exact = expected_ettr(interval_seconds=900.0, checkpoint=checkpoint, interruptions=job)
    assert 1 - simulated == pytest.approx(1 - exact, rel=0.01)


def test_without_failures_the_exact_mean_counts_saves_alone() -> None:
    job = Interruptions(failures_per_day=0.0)
    assert expected_ettr(interval_seconds=90.0, checkpoint=waited_for(10.0), interruptions=job) == 0.9
