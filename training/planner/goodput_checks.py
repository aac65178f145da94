"""Simulated runs against closed forms: the exact mean, the best interval, Meta's formula. No torch.

Each line says whether what should hold does; `planner.goodput_validation` prints them.
"""

import math
from dataclasses import dataclass

from training.planner.checkpoint_cost import CheckpointCost
from training.planner.checkpoint_interval import best_interval, daly_interval, simulated_interval, young_interval
from training.planner.goodput import expected_ettr, published_ettr
from training.planner.goodput_simulation import simulate
from training.planner.reliability import SECONDS_PER_DAY, Interruptions

TOLERANCE = 0.01
"""Largest relative difference between a closed form and the simulation where the form's assumptions hold."""
SMALL_LOSS = 0.1
"""Meta's formula is of first order in the share lost to failures, x; what it leaves out is about x^2 / 2."""
NUM_RUNS = 2000
"""Simulated runs of each case."""
NUM_FAILURES = 200
"""Work of each of them, in mean times between failures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A job whose goodput is known in closed form. Seconds."""

    name: str
    mtbf: float
    stall: float
    write: float
    restart: float
    detection: float = 0.0

    @property
    def checkpoint(self) -> CheckpointCost:
        """Times of one checkpoint."""
        return CheckpointCost(stall_seconds=self.stall, write_seconds=self.write)

    @property
    def interruptions(self) -> Interruptions:
        """What interrupts it."""
        return Interruptions(
            failures_per_day=SECONDS_PER_DAY / self.mtbf,
            detection_seconds=self.detection,
            restart_seconds=self.restart,
            node_loss_share=0.0,
        )

    def simulated_ettr(self, interval: float) -> float:
        """Return the time that trains of all simulated runs by all of their time."""
        runs = simulate(
            work_seconds=NUM_FAILURES * self.mtbf,
            interval_seconds=interval,
            checkpoint=self.checkpoint,
            interruptions=self.interruptions,
            num_runs=NUM_RUNS,
        )
        return float(runs.ledger.compute_seconds.sum() / runs.end_seconds.sum())


CASES = (
    Case(name="Daly 2006, figure 3", mtbf=24 * 3600, stall=300, write=300, restart=600),
    Case(name="Daly 2006, figure 4", mtbf=6 * 3600, stall=300, write=300, restart=600),
    Case(name="Daly 2006, figure 5", mtbf=900, stall=300, write=300, restart=600),
    Case(name="16,384 H100, waits for saves", mtbf=3.09 * 3600, stall=60, write=60, restart=200, detection=60),
    Case(name="16,384 A100, saves beside training", mtbf=1.8 * 3600, stall=2, write=120, restart=200, detection=600),
    Case(name="98K H100, saves beside training", mtbf=0.3 * 3600, stall=2, write=60, restart=900, detection=60),
)
DALY_MINUTES = {"Daly 2006, figure 3": 117.0, "Daly 2006, figure 4": 57.0, "Daly 2006, figure 5": 9.1}
"""Daly's own figures of his interval, for work of 500 h."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of a table, and whether what should hold does; None where nothing is claimed."""

    cells: tuple[str, ...]
    holds: bool | None


def ettr_checks() -> list[Check]:
    """Return the exact mean against simulated runs, at the best interval and at three times it."""
    checks = []
    for case in CASES:
        best = best_interval(checkpoint=case.checkpoint, mtbf_seconds=case.mtbf)
        for interval in (best, 3 * best):
            exact = expected_ettr(
                interval_seconds=interval, checkpoint=case.checkpoint, interruptions=case.interruptions
            )
            simulated = case.simulated_ettr(interval)
            errors = simulated / exact - 1, (1 - simulated) / (1 - exact) - 1
            checks.append(
                Check(
                    cells=(
                        case.name,
                        f"{interval / 60:.1f}",
                        *(f"{100 * value:.2f}" for value in (exact, simulated)),
                        *map(percent, errors),
                    ),
                    holds=max(map(abs, errors)) <= TOLERANCE,
                )
            )
    return checks


def interval_checks() -> list[Check]:
    """Return Young's, Daly's, the exact and the simulated best interval."""
    checks = []
    for case in CASES:
        young, daly = (
            form(stall_seconds=case.stall, mtbf_seconds=case.mtbf) for form in (young_interval, daly_interval)
        )
        exact = best_interval(checkpoint=case.checkpoint, mtbf_seconds=case.mtbf)
        simulated = simulated_interval(
            work_seconds=NUM_FAILURES * case.mtbf,
            checkpoint=case.checkpoint,
            interruptions=case.interruptions,
            num_runs=NUM_RUNS,
        )
        # A save that is not over when the next one is due moves it: the forms know nothing of that.
        is_free = exact > case.write - case.stall
        published = DALY_MINUTES.get(case.name)
        agrees = abs(simulated / exact - 1) <= TOLERANCE and (not is_free or abs(daly / exact - 1) <= TOLERANCE)
        checks.append(
            Check(
                cells=(
                    case.name,
                    *(f"{seconds / 60:.2f}" for seconds in (young, daly)),
                    f"{published:g}" if published else "-",
                    *(f"{seconds / 60:.2f}" for seconds in (exact, simulated)),
                    *(percent(form / exact - 1) for form in (young, daly, simulated)),
                ),
                holds=agrees and (published is None or abs(daly / 60 / published - 1) <= TOLERANCE),
            )
        )
    return checks


def formula_checks() -> list[Check]:
    """Return Meta's formula against simulated runs, from rare failures to frequent ones."""
    checks = []
    for devices, rate in ((1024, 6.5), (2048, 6.5), (4096, 6.5), (8192, 2.34), (16_384, 2.34), (16_384, 6.5)):
        for interval in (600.0, 3600.0):
            failures_per_day = devices / 8 * rate / 1000
            case = Case(
                name=f"{devices:,} GPUs, {rate:g}",
                mtbf=SECONDS_PER_DAY / failures_per_day,
                stall=10,
                write=10,
                restart=600,
            )
            formula = published_ettr(
                failures_per_day=failures_per_day, restart_seconds=600, interval_seconds=interval, write_seconds=10
            )
            simulated = case.simulated_ettr(interval)
            lost = (600 + interval / 2) / case.mtbf
            error = formula / simulated - 1
            claimed = lost <= SMALL_LOSS
            checks.append(
                Check(
                    cells=(
                        case.name,
                        f"{interval / 60:.0f}",
                        f"{100 * lost:.1f}",
                        f"{100 * formula:.2f}",
                        f"{100 * simulated:.2f}",
                        percent(error),
                        "within 1 %" if claimed else "no claim",
                    ),
                    holds=abs(error) <= TOLERANCE if claimed else None,
                )
            )
    return checks


def percent(error: float, decimals: int = 2) -> str:
    """Return a relative error for people, with its sign."""
    rounded = round(100 * error, decimals)
    return f"{0.0 if math.isclose(rounded, 0.0) else rounded:+.{decimals}f} %"
