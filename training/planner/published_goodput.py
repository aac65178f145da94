"""Published figures of goodput, price and energy, each beside what the planner says of it. No torch.

What goes in is published too, or named as an assumption; nothing is fitted to what it is compared with.
"""

from collections.abc import Callable

from training.config.reliability_schema import ReliabilityConfig
from training.planner.checkpoint_cost import CheckpointCost
from training.planner.checkpoint_interval import best_interval
from training.planner.goodput import expected_ettr, published_ettr
from training.planner.goodput_simulation import simulate
from training.planner.price import Power, RunPrice, run_price
from training.planner.published_failures import PublishedFigure
from training.planner.reliability import SECONDS_PER_DAY, Interruptions, interruptions_of

_HOUR = 3600.0
_FREE = CheckpointCost(stall_seconds=0.0, write_seconds=0.0)


def _llama3(detection_seconds: float) -> Callable[[], float]:
    def predict() -> float:
        # 5.2 TB (NVIDIA's Llama 3.1 405B) at the 2 TB/s that the storage sustains, either way.
        checkpoint = CheckpointCost(stall_seconds=2.6, write_seconds=2.6, reload_seconds=2.6)
        reliability = ReliabilityConfig(
            detection_seconds=detection_seconds,
            spare_nodes=1024,
            planned_per_day=47 / 54,
            failure_rate_sigma=0.0,
        )
        job = interruptions_of(
            reliability, num_nodes=2048, devices_per_node=8, reload_seconds=checkpoint.reload_seconds
        )
        runs = simulate(
            work_seconds=54 * SECONDS_PER_DAY,
            interval_seconds=best_interval(checkpoint=checkpoint, mtbf_seconds=job.mtbf_seconds),
            checkpoint=checkpoint,
            interruptions=job,
            num_runs=200,
        )
        return 100 * runs.ettr.mean

    return predict


def _exact(
    mtbf_hours: float, *, detection: float, restart: float, interval: float, checkpoint: CheckpointCost = _FREE
) -> float:
    job = Interruptions(failures_per_day=24 / mtbf_hours, detection_seconds=detection, restart_seconds=restart)
    return 100 * expected_ettr(interval_seconds=interval, checkpoint=checkpoint, interruptions=job)


def _byte_robust() -> float:
    checkpoint = CheckpointCost(stall_seconds=1.0, write_seconds=60.0)
    job = interruptions_of(ReliabilityConfig(), num_nodes=1200, devices_per_node=8, reload_seconds=60.0)
    interval = best_interval(checkpoint=checkpoint, mtbf_seconds=job.mtbf_seconds)
    return 100 * expected_ettr(interval_seconds=interval, checkpoint=checkpoint, interruptions=job)


def goodput_figures() -> list[PublishedFigure]:
    """Return figures of the share of time that trains."""
    llama = "Llama 3 405B (arXiv:2407.21783)"
    llama_given = (
        "419 failures and 47 planned stops in 54 days, 3 by hand; cold start 200 s (arXiv:2602.00277); 5.2 TB at "
        "2 TB/s, waited for, at the best interval; detection {}, an assumption"
    )
    ft = "Meta FT-HSDP (arXiv:2602.00277)"
    effective = "effective training time, %"
    return [
        PublishedFigure(
            source=llama,
            what=effective,
            given=llama_given.format("600 s (a collective's timeout)"),
            published=90.0,
            predict=_llama3(600.0),
            is_bound=True,
        ),
        PublishedFigure(
            source=llama,
            what=effective,
            given=llama_given.format("60 s (inspection)"),
            published=90.0,
            predict=_llama3(60.0),
            is_bound=True,
        ),
        PublishedFigure(
            source="Meta RSC-1 (arXiv:2410.21680)",
            what="ETTR of jobs above 1,024 GPUs, %",
            given="7.9 h between failures as measured; checkpoints every hour, 5 to 20 min to restart (here 12.5)",
            published=90.0,
            predict=lambda: _exact(7.9, detection=0, restart=12.5 * 60, interval=_HOUR),
            remark='"around 0.9"; queues and saves not counted',
        ),
        PublishedFigure(
            source="MegaScale (NSDI 2024)",
            what=effective,
            given="100 restarts in 3 weeks (it says several); 10 min to diagnose and 15 to catch up, its bounds",
            published=90.0,
            predict=lambda: _exact(21 * 24 / 100, detection=600, restart=900, interval=1),
            is_bound=True,
        ),
        PublishedFigure(
            source="ByteRobust (arXiv:2509.16293)",
            what="ETTR, dense, 9,600 GPUs, %",
            given="our defaults (rates of Llama 3, detection 60 s, 200 s to start); stall 1 s, written and "
            "read in 60 s, both assumed",
            published=97.0,
            predict=_byte_robust,
            remark="its own rates are not published per node",
        ),
        PublishedFigure(
            source=ft,
            what=f"{effective}, synchronous, 98K GPUs",
            given="18 min between failures, 10 min to recover, Meta's formula of first order",
            published=44.0,
            predict=lambda: (
                100 * published_ettr(failures_per_day=80, restart_seconds=600, interval_seconds=1e-3, write_seconds=0)
            ),
            remark="the published figure is 1 - 10 / 18",
        ),
        PublishedFigure(
            source=ft,
            what=f"{effective}, synchronous, 98K GPUs",
            given="the same, exact: a failure in a restart begins it anew and costs what had passed of it",
            published=44.0,
            predict=lambda: _exact(0.3, detection=0, restart=600, interval=1e-3),
            remark="first order does not hold where a restart is no small part of the time between failures",
        ),
        PublishedFigure(
            source=ft,
            what=f"{effective}, synchronous, 98K GPUs",
            given="18 min between failures, cold start 900 s at 98K GPUs (the same source), exact",
            published=44.0,
            predict=lambda: _exact(0.3, detection=0, restart=900, interval=1e-3),
            remark="saves and lost steps not counted: not published",
        ),
        PublishedFigure(
            source="BLOOM-176B (bigscience tr11)",
            what="time in checkpoints, %",
            given="40 s every 3 h, training waits",
            published=0.37,
            predict=lambda: (
                100
                - 100
                * expected_ettr(
                    interval_seconds=3 * _HOUR,
                    checkpoint=CheckpointCost(stall_seconds=40, write_seconds=40),
                    interruptions=Interruptions(failures_per_day=0.0),
                )
            ),
        ),
    ]


def _undisturbed(*, device_hours: float, devices: int, tokens: float = 1.0, power: Power | None = None) -> RunPrice:
    runs = simulate(
        work_seconds=device_hours / devices * _HOUR,
        interval_seconds=_HOUR,
        checkpoint=_FREE,
        interruptions=Interruptions(failures_per_day=0.0),
        num_runs=1,
    )
    return run_price(
        runs,
        num_nodes=devices // 8,
        spare_nodes=0,
        devices_per_node=8,
        tokens=tokens,
        price_per_device_hour=2.0,
        power=power,
    )


def price_figures() -> list[PublishedFigure]:
    """Return figures of price and energy."""

    def deepseek() -> float:
        total = _undisturbed(device_hours=2.664e6, devices=2048, tokens=14.8e12).total
        assert total is not None
        return total.mean / 1e6

    def bloom() -> float:
        # Its authors count the devices' data sheet alone: no host, no cooling.
        power = Power(device_watts=400.0, host_watts=0.0, pue=1.0)
        energy = _undisturbed(device_hours=1_082_990, devices=384, power=power).energy_megawatt_hours
        assert energy is not None
        return energy.mean

    return [
        PublishedFigure(
            source="DeepSeek-V3 (arXiv:2412.19437)",
            what="million dollars of pre-training",
            given="2.664 million device-hours on 2,048 devices at 2 dollars",
            published=5.328,
            predict=deepseek,
            remark="arithmetic",
        ),
        PublishedFigure(
            source="BLOOM-176B (arXiv:2211.02001)",
            what="MWh of the devices",
            given="1,082,990 device-hours of 400 W, without hosts and cooling",
            published=433.196,
            predict=bloom,
            remark="arithmetic; the paper counts the data sheet's power too",
        ),
        PublishedFigure(
            source="8 H100, training (arXiv:2412.08602)",
            what="kW of a node, highest moment",
            given="700 W a device and the default host_watts, from the 7.75 kW mean of arXiv:2506.14551",
            published=8.4,
            predict=lambda: Power(device_watts=700.0, pue=1.0).node_watts(8, 1.0) / 1000,
            remark="the default is a mean",
        ),
    ]
