from typing import Any

import pytest

from training.config.reliability_schema import ReliabilityConfig
from training.errors import ConfigError
from training.planner.checkpoint_cost import CheckpointCost, Storage
from training.planner.goodput_plan import GoodputPlan, RunOutline, enough_spares, plan_goodput
from training.planner.goodput_simulation import SimulatedRuns, simulate
from training.planner.price import Power, RunPrice, run_price
from training.planner.reliability import SECONDS_PER_DAY, Interruptions

JOB = Interruptions(failures_per_day=8.0, detection_seconds=60.0, restart_seconds=300.0, spare_nodes=50)


def runs(job: Interruptions = JOB) -> SimulatedRuns:
    return simulate(
        work_seconds=10 * SECONDS_PER_DAY,
        interval_seconds=1800.0,
        checkpoint=CheckpointCost(stall_seconds=30.0, write_seconds=30.0),
        interruptions=job,
        num_runs=200,
    )


def price(power: Power | None = None, *, spare_nodes: int = 0, **changes: Any) -> RunPrice:
    return run_price(
        runs(), num_nodes=100, spare_nodes=spare_nodes, devices_per_node=8, tokens=1e12, power=power, **changes
    )


def test_the_rent_is_all_booked_devices_until_the_end() -> None:
    rent = price(spare_nodes=5, price_per_device_hour=2.0).rent
    assert rent is not None
    days = runs().days
    assert rent.p95 == pytest.approx(105 * 8 * 24 * days.p95 * 2.0)
    assert rent.mean == pytest.approx(105 * 8 * 24 * days.mean * 2.0)


def test_the_price_of_a_million_tokens_is_the_total_by_the_tokens() -> None:
    priced = price(price_per_device_hour=2.0)
    assert priced.total == priced.rent
    assert priced.per_million_tokens is not None
    assert priced.total is not None
    assert priced.per_million_tokens.p50 == pytest.approx(priced.total.p50 / 1e6)


def test_devices_that_wait_take_what_waiting_takes() -> None:
    power = Power(device_watts=700.0, host_watts=2000.0, waiting_share=0.1, pue=1.25)
    energy = price(power, spare_nodes=10).energy_megawatt_hours
    assert energy is not None
    ledger, end = runs().ledger, runs().end_seconds
    training = (ledger.compute_seconds + ledger.lost_work_seconds).mean() / 3600
    all_hours = end.mean() / 3600
    busy, idle = 1.25 * (2000 + 8 * 700), 1.25 * (2000 + 8 * 70)
    watt_hours = 100 * (training * busy + (all_hours - training) * idle) + 10 * all_hours * idle
    assert energy.mean == pytest.approx(watt_hours / 1e6)


def test_a_device_that_waits_for_others_in_a_step_takes_less() -> None:
    power = Power(device_watts=700.0)
    full, half = price(power).energy_megawatt_hours, price(power, computing_share=0.5).energy_megawatt_hours
    assert full is not None
    assert half is not None
    assert half.mean < full.mean
    assert power.node_watts(8, 0.5) == pytest.approx((power.node_watts(8, 0) + power.node_watts(8, 1)) / 2)


def test_energy_that_is_paid_for_is_in_the_total() -> None:
    priced = price(Power(device_watts=700.0, price_per_kwh=0.1), price_per_device_hour=2.0)
    assert priced.energy is not None
    assert priced.energy_megawatt_hours is not None
    assert priced.rent is not None
    assert priced.total is not None
    assert priced.energy.mean == pytest.approx(priced.energy_megawatt_hours.mean * 100)
    assert priced.total.mean == pytest.approx(priced.rent.mean + priced.energy.mean)


def test_what_was_not_given_is_not_known() -> None:
    priced = price()
    assert priced.rent is priced.energy is priced.total is priced.energy_megawatt_hours is None
    assert priced.device_hours.mean > 0
    # Energy alone is no total: the devices cost too.
    assert price(Power(device_watts=700.0, price_per_kwh=0.1)).total is None


def test_power_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.power\.pue=0\.9.*at least 1"):
        Power(device_watts=700.0, pue=0.9)
    with pytest.raises(ConfigError, match=r"cluster\.power\.waiting_share=2"):
        Power(device_watts=700.0, waiting_share=2.0)


def plan(every_steps: int = 100, **changes: Any) -> GoodputPlan:
    return plan_goodput(
        RunOutline(
            num_steps=100_000,
            step_seconds=5.0,
            tokens=1e12,
            num_nodes=2048,
            devices_per_node=8,
            num_parameters=405e9,
            asynchronous=True,
            every_steps=every_steps,
        ),
        reliability=ReliabilityConfig(**changes),
        storage=Storage(write_bytes_per_second=200e9, read_bytes_per_second=200e9, write_slowdown=0.1),
        price_per_device_hour=2.0,
        power=Power(device_watts=700.0),
        num_runs=200,
    )


def test_a_plan_spends_all_its_days() -> None:
    planned = plan()
    assert sum(planned.days_spent.values()) == pytest.approx(planned.days.mean)
    assert planned.days_spent["compute"] == pytest.approx(500_000 / SECONDS_PER_DAY)


def test_the_advised_interval_is_better_than_the_given_one() -> None:
    planned = plan(every_steps=2000)
    assert planned.best_expected_ettr > planned.expected_ettr
    followed = plan(every_steps=planned.best_every_steps)
    assert followed.expected_ettr == planned.best_expected_ettr
    assert followed.days.mean < planned.days.mean


def test_the_advised_spares_are_hardly_ever_waited_for() -> None:
    none = plan(spare_nodes=0)
    advised = none.advised_spare_nodes
    assert 0 < advised < 100
    assert plan(spare_nodes=advised).days_spent["spare_wait"] < 0.01 * none.days_spent["compute"]
    assert plan(spare_nodes=advised // 3).days_spent["spare_wait"] > none.days_spent["compute"] * 0.02


def test_spares_follow_the_poisson_distribution_of_nodes_in_repair() -> None:
    # 4 losses a day, each 1 day in repair: P(at most 9) = 0.992, P(at most 8) = 0.979 for mean 4.
    job = Interruptions(failures_per_day=4.0, repair_seconds=SECONDS_PER_DAY)
    assert enough_spares(job) == 9
    assert enough_spares(Interruptions(failures_per_day=0.0)) == 0


def test_a_plan_without_failures_saves_only_at_its_end() -> None:
    planned = plan(failures_per_1000_node_days=0.0, job_failures_per_day=0.0)
    assert planned.best_every_steps == 100_000
    assert planned.num_failures.p95 == 0
