"""From a step's time to a finish date, a price and advice: failures, checkpoints, spares and energy put together.

No torch. The one entry for whoever plans a run; the parts are in the files that it imports.
"""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.special import ndtri, pdtr

from training.config.reliability_schema import ReliabilityConfig
from training.errors import ConfigError
from training.planner.checkpoint_cost import BYTES_PER_PARAMETER, CheckpointCost, Storage
from training.planner.checkpoint_interval import best_interval
from training.planner.goodput import expected_ettr
from training.planner.goodput_simulation import MOST_SIGMAS, Ledger, Spread, simulate
from training.planner.price import Power, RunPrice, run_price
from training.planner.reliability import SECONDS_PER_DAY, Interruptions, interruptions_of

ENOUGH_SPARES = 0.99
"""Share of the time in which the advised number of spares is enough."""
_MOST_SPARES = 1_000_000
_RATES = 101
"""Equally likely failure rates that stand for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutline:
    """What of a run matters to its goodput."""

    num_steps: int
    """Optimizer steps."""
    step_seconds: float
    """Of one, undisturbed."""
    tokens: float
    """Of all steps."""
    num_nodes: int
    """Nodes that work."""
    devices_per_node: int
    """Devices of a node."""
    num_parameters: float
    """Of the model, which its checkpoints follow from."""
    asynchronous: bool
    """Whether training goes on while a checkpoint is written (checkpoint.asynchronous)."""
    every_steps: int
    """Steps between checkpoints (checkpoint.every_steps)."""
    computing_share: float = 1.0
    """Share of a step, 0 to 1, in which a device computes rather than waits for others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoodputPlan:
    """What becomes of a run among failures."""

    checkpoint: CheckpointCost
    """Times of one checkpoint."""
    interruptions: Interruptions
    """What interrupts the run."""
    expected_ettr: float
    """Effective training time ratio in closed form: the given failure rate, spares enough, nothing planned."""
    best_every_steps: int
    """Steps between checkpoints that lose the least time at the given failure rate."""
    best_expected_ettr: float
    """Effective training time ratio in closed form with them."""
    advised_spare_nodes: int
    """Spares that are enough in 99 % of the time."""
    num_failures: Spread
    """Of the simulated runs, each with a failure rate and a step time drawn from what is known of them."""
    ettr: Spread
    """Effective training time ratio of the same runs."""
    days: Spread
    """From start to end."""
    days_at: tuple[float, ...]
    """Quantiles of `days`, 0 to 100 % in steps of 5 %."""
    days_spent: dict[str, float]
    """Entry of the ledger -> days, mean of the simulated runs; the sum is the mean of `days`."""
    price: RunPrice
    """Device-hours, money and energy."""


def plan_goodput(
    run: RunOutline,
    *,
    reliability: ReliabilityConfig,
    storage: Storage,
    price_per_device_hour: float | None = None,
    power: Power | None = None,
    step_sigma: float = 0.0,
    num_runs: int = 1000,
    seed: int = 0,
) -> GoodputPlan:
    """Return the plan of a run among failures, the same for the same arguments.

    Args:
        run: its steps, nodes and checkpoints.
        reliability: the cluster's failures, and the spares that are booked.
        storage: what checkpoints are written to.
        price_per_device_hour: of one device; null is not known.
        power: what a node draws; null is not known.
        step_sigma: how little step_seconds is known: standard deviation of its logarithm.
        num_runs: simulated runs.
        seed: of their random numbers.

    Raises:
        ConfigError: the run would hardly ever end.
    """
    checkpoint = storage.checkpoint_cost(
        checkpoint_bytes=BYTES_PER_PARAMETER * run.num_parameters,
        num_devices=run.num_nodes * run.devices_per_node,
        asynchronous=run.asynchronous,
    )
    interruptions = interruptions_of(
        reliability,
        num_nodes=run.num_nodes,
        devices_per_node=run.devices_per_node,
        reload_seconds=checkpoint.reload_seconds,
    )
    advised = enough_spares(interruptions)
    if reliability.spare_nodes is None:
        interruptions = replace(interruptions, spare_nodes=advised)
    best = best_interval(checkpoint=checkpoint, mtbf_seconds=interruptions.mtbf_seconds)
    best_every_steps = min(run.num_steps, max(1, round(best / run.step_seconds))) if best < math.inf else run.num_steps
    simulated = simulate(
        work_seconds=run.num_steps * run.step_seconds,
        interval_seconds=run.every_steps * run.step_seconds,
        checkpoint=checkpoint,
        interruptions=interruptions,
        work_sigma=step_sigma,
        num_runs=num_runs,
        seed=seed,
    )

    def closed_form(every_steps: int) -> float:
        return expected_ettr(
            interval_seconds=every_steps * run.step_seconds, checkpoint=checkpoint, interruptions=interruptions
        )

    ledger = simulated.ledger
    return GoodputPlan(
        checkpoint=checkpoint,
        interruptions=interruptions,
        expected_ettr=closed_form(run.every_steps),
        best_every_steps=best_every_steps,
        best_expected_ettr=closed_form(best_every_steps),
        advised_spare_nodes=advised,
        num_failures=Spread.of(simulated.num_failures.astype(float)),
        ettr=simulated.ettr,
        days=simulated.days,
        days_at=tuple(
            float(day) for day in np.quantile(simulated.end_seconds, np.linspace(0, 1, 21)) / SECONDS_PER_DAY
        ),
        days_spent={
            entry.name.removesuffix("_seconds"): float(getattr(ledger, entry.name).mean()) / SECONDS_PER_DAY
            for entry in fields(Ledger)
        },
        price=run_price(
            simulated,
            num_nodes=run.num_nodes,
            spare_nodes=interruptions.spare_nodes,
            devices_per_node=run.devices_per_node,
            tokens=run.tokens,
            price_per_device_hour=price_per_device_hour,
            power=power,
            computing_share=run.computing_share,
        ),
    )


def enough_spares(interruptions: Interruptions, *, share: float = ENOUGH_SPARES) -> int:
    """Return the least number of spares that is enough for a share of the time.

    At a known rate, nodes in repair are Poisson distributed with mean losses x repair time, however repair times
    scatter (Palm's theorem for M/G/infinity); over what is not known of the rate the mean is taken. A little too many:
    while the job waits, nothing fails.

    Args:
        interruptions: what interrupts the job.
        share: of the time, below 1.

    Raises:
        ConfigError: no number that anybody books is enough.
    """
    losses_per_second = interruptions.failures_per_day * interruptions.node_loss_share / SECONDS_PER_DAY
    doubt = np.clip(ndtri((np.arange(_RATES) + 0.5) / _RATES), -MOST_SIGMAS, MOST_SIGMAS)
    in_repair = losses_per_second * interruptions.repair_seconds * np.exp(interruptions.failure_rate_sigma * doubt)
    few, many = -1, 1
    while np.mean(pdtr(many, in_repair)) < share:
        few, many = many, 2 * many
        if many > _MOST_SPARES:
            raise ConfigError(
                "cluster.reliability.repair_seconds",
                interruptions.repair_seconds,
                f"at {interruptions.failures_per_day:.3g} failures a day over {_MOST_SPARES:,} nodes are in repair",
                "lower failure rates, a shorter repair, or cluster.reliability.failure_rate_sigma=0.5",
            )
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if np.mean(pdtr(middle, in_repair)) >= share else (middle, many)
    return many
