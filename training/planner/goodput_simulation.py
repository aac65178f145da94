"""Many simulated runs of one job: when each ends, and where its time went. No torch.

All runs advance together, from one interruption to the next, as arrays with an entry for each run. The random numbers
of a run do not depend on what the job costs: two jobs with the same seed meet the same luck.
"""

from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError
from training.planner.checkpoint_cost import CheckpointCost
from training.planner.goodput import expected_ettr, spaced_interval
from training.planner.reliability import SECONDS_PER_DAY, Interruptions

LEAST_ETTR = 0.01
"""Below it a run is refused: it would hardly ever end."""
MOST_SIGMAS = 2.0
"""How far a drawn failure rate is from the given one at most, in standard deviations of its logarithm."""
_LAST = 1e-9
"""Share of an interval that is rounding, not work."""

Seconds: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A figure over all simulated runs."""

    mean: float
    p5: float
    p50: float
    p95: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "Spread":
        """Return the spread of one value for each run."""
        return cls(mean=float(values.mean()), **{f"p{q}": float(np.percentile(values, q)) for q in (5, 50, 95)})

    def times(self, factor: float) -> "Spread":
        """Return the spread of a multiple, not negative."""
        return Spread(mean=self.mean * factor, p5=self.p5 * factor, p50=self.p50 * factor, p95=self.p95 * factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """Where the time of each run went, an entry for each run; the sum is the time from start to end."""

    compute_seconds: Seconds
    """Steps that count."""
    checkpoint_stall_seconds: Seconds
    """Training stood still for a checkpoint, the last one's whole write included."""
    lost_work_seconds: Seconds
    """Steps that a failure undid."""
    detection_seconds: Seconds
    """From failures to the end of all processes."""
    manual_seconds: Seconds
    """Waiting for a person."""
    spare_wait_seconds: Seconds
    """Waiting for a node: no spare was whole."""
    planned_seconds: Seconds
    """Planned interruptions, without the save before and the restart after."""
    restart_seconds: Seconds
    """Starting the processes, attempts that failed included."""
    reload_seconds: Seconds
    """Reading checkpoints, attempts that failed included."""

    @classmethod
    def empty(cls, num_runs: int) -> "Ledger":
        """Return a ledger without entries for a number of runs."""
        return cls(**{field.name: np.zeros(num_runs) for field in fields(cls)})

    @property
    def wall_seconds(self) -> Seconds:
        """From start to end."""
        return np.sum([getattr(self, field.name) for field in fields(self)], axis=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedRuns:
    """What came of all runs."""

    ledger: Ledger
    end_seconds: Seconds
    """When each run's last checkpoint was written, from its start, by a clock of its own."""
    num_failures: NDArray[np.int64]
    """Failures of each run."""

    @property
    def ettr(self) -> Spread:
        """Effective training time ratio of the runs (arXiv:2410.21680)."""
        return Spread.of(self.ledger.compute_seconds / self.end_seconds)

    @property
    def days(self) -> Spread:
        """Days from start to end."""
        return Spread.of(self.end_seconds / SECONDS_PER_DAY)


def simulate(
    *,
    work_seconds: float,
    interval_seconds: float,
    checkpoint: CheckpointCost,
    interruptions: Interruptions,
    work_sigma: float = 0.0,
    num_runs: int = 1000,
    seed: int = 0,
) -> SimulatedRuns:
    """Return simulated runs of one job, the same for the same arguments.

    A failure undoes what no committed checkpoint holds; detection follows, for some a person, for some another node,
    then restart and reading, which a further failure begins anew. Failures come while processes start or train, not
    while the job waits, nor during the save before a planned interruption. The first start costs nothing, and the end
    waits for a last checkpoint.

    Args:
        work_seconds: of all steps, if nothing interrupted them.
        interval_seconds: training between checkpoints, above 0; while one is written no other begins.
        checkpoint: times of one checkpoint.
        interruptions: what interrupts the job.
        work_sigma: how little work_seconds is known: standard deviation of its logarithm.
        num_runs: how many.
        seed: of the random numbers.

    Raises:
        ConfigError: in the worst of the runs less than a hundredth of the time would train.
        ValueError: no work, or no interval.
    """
    if min(work_seconds, interval_seconds) <= 0:
        raise ValueError(f"{work_seconds} s of work with checkpoints every {interval_seconds} s: both are above 0")
    luck = np.random.default_rng(seed)
    work = work_seconds * np.exp(work_sigma * luck.standard_normal(num_runs))
    doubt = np.clip(luck.standard_normal(num_runs), -MOST_SIGMAS, MOST_SIGMAS)
    failures_per_day = interruptions.failures_per_day * np.exp(interruptions.failure_rate_sigma * doubt)
    _refuse_endless(float(failures_per_day.max()), interval_seconds, checkpoint, interruptions)
    events_per_day = failures_per_day + interruptions.planned_per_day
    between_seconds = np.full(num_runs, np.inf)
    np.divide(SECONDS_PER_DAY, events_per_day, out=between_seconds, where=events_per_day > 0)
    job = _Job(work, spaced_interval(interval_seconds, checkpoint), checkpoint, interruptions)
    while job.running.any():
        waiting = luck.standard_exponential(num_runs)
        kinds, manual, loss = luck.random((3, num_runs))
        uptime = waiting * between_seconds
        is_failure = kinds * events_per_day < failures_per_day
        ended = job.train(uptime, is_failure)
        failed, planned = job.running & ~ended & is_failure, job.running & ~ended & ~is_failure
        job.running &= ~ended
        job.wait_for_planned(planned)
        job.wait_for_recovery(
            failed,
            needs_person=failed & (manual < interruptions.manual_share),
            loses_node=failed & (loss < interruptions.node_loss_share),
        )
    return SimulatedRuns(ledger=job.ledger, end_seconds=job.clock, num_failures=job.num_failures)


def _refuse_endless(
    failures_per_day: float, interval_seconds: float, checkpoint: CheckpointCost, interruptions: Interruptions
) -> None:
    # Planned interruptions count as failures: they save, but each one asks for a restart that has to come to its end.
    per_day = failures_per_day + interruptions.planned_per_day
    if per_day == 0:
        return
    pessimistic = replace(interruptions, failures_per_day=per_day)
    ettr = expected_ettr(interval_seconds=interval_seconds, checkpoint=checkpoint, interruptions=pessimistic)
    if ettr < LEAST_ETTR:
        setup = interruptions.restart_seconds + interruptions.reload_seconds
        raise ConfigError(
            "cluster.reliability",
            f"an interruption every {24 / per_day:.2g} h",
            f"with checkpoints every {interval_seconds:.0f} s, written in {checkpoint.write_seconds:.0f} s, and "
            f"restarts of {setup:.0f} s only {100 * ettr:.2g} % of the time would train, the run would hardly ever end",
            "fewer nodes, faster restarts (cluster.reliability.cold_start_seconds), or storage that writes and reads "
            "faster with a checkpoint more often (checkpoint.every_steps)",
        )


class _Job:
    """All runs at once: what each has saved, its clock, its spares."""

    def __init__(
        self, work: Seconds, interval: float, checkpoint: CheckpointCost, interruptions: Interruptions
    ) -> None:
        num_runs = len(work)
        self.ledger = Ledger.empty(num_runs)
        self.clock = np.zeros(num_runs)
        self.num_failures = np.zeros(num_runs, dtype=np.int64)
        self.running = np.ones(num_runs, dtype=bool)
        self._left, self._interval, self._checkpoint, self._interruptions = work, interval, checkpoint, interruptions
        self._restart, self._reload = np.zeros(num_runs), np.zeros(num_runs)  # the first start costs nothing
        # When each spare is whole again. Repairs take equally long, so the next in turn is always the first back.
        self._whole_again = np.zeros((num_runs, max(1, interruptions.spare_nodes)))
        self._turn = np.zeros(num_runs, dtype=np.int64)

    def train(self, uptime: Seconds, is_failure: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Advance the running ones to their next event or their end, and return which came to their end."""
        interval, stall, write = self._interval, self._checkpoint.stall_seconds, self._checkpoint.write_seconds
        left = np.where(self.running, self._left, 0.0)
        restarting = np.minimum(uptime, self._restart)
        reloading = np.minimum(uptime - restarting, self._reload)
        available = uptime - restarting - reloading
        is_training = uptime > self._restart + self._reload
        num_intervals = np.maximum(np.ceil(left / interval - _LAST), 1)
        to_the_end = left + (num_intervals - 1) * stall + write
        ended = self.running & is_training & (available >= to_the_end)
        trained = np.where(ended, to_the_end, available)  # with the stalls in between
        period = interval + stall
        whole = np.where(ended, 0.0, np.floor(trained / period))
        worked = np.minimum(whole * interval + np.minimum(trained - whole * period, interval), left)
        worked = np.where(ended, left, worked)
        # Checkpoint k is begun after k intervals and k - 1 stalls, and holds once it is written.
        committed = np.maximum(np.floor((trained - write + stall) / period), 0.0) * interval
        planned = self.running & ~ended & ~is_failure & is_training
        kept = np.where(ended | planned, worked, committed)
        stalled = trained - worked + np.where(planned, write, 0.0)
        self._add("restart_seconds", restarting)
        self._add("reload_seconds", reloading)
        self._add("compute_seconds", kept)
        self._add("lost_work_seconds", worked - kept)
        self._add("checkpoint_stall_seconds", stalled)
        self._left = self._left - np.where(self.running, kept, 0.0)
        return ended

    def wait_for_planned(self, chosen: NDArray[np.bool_]) -> None:
        """Let the chosen runs go through a planned interruption."""
        self._add("planned_seconds", np.where(chosen, self._interruptions.planned_seconds, 0.0))
        self._restart_next(chosen)

    def wait_for_recovery(
        self, chosen: NDArray[np.bool_], *, needs_person: NDArray[np.bool_], loses_node: NDArray[np.bool_]
    ) -> None:
        """Let the chosen runs see their failure, and wait for all that they need to start again."""
        interruptions, failed_at = self._interruptions, self.clock.copy()
        self.num_failures += chosen
        self._add("detection_seconds", np.where(chosen, interruptions.detection_seconds, 0.0))
        self._add("manual_seconds", np.where(needs_person, interruptions.manual_seconds, 0.0))
        rows = np.flatnonzero(loses_node)
        back_at = failed_at[rows] + interruptions.repair_seconds
        if interruptions.spare_nodes:
            turn = self._turn[rows]
            whole_at = self._whole_again[rows, turn]
            self._whole_again[rows, turn] = back_at
            self._turn[rows] = (turn + 1) % interruptions.spare_nodes
        else:
            whole_at = back_at
        waiting = np.zeros_like(self.clock)
        waiting[rows] = np.maximum(whole_at - self.clock[rows], 0.0)
        self._add("spare_wait_seconds", waiting)
        self._restart_next(chosen)

    def _restart_next(self, chosen: NDArray[np.bool_]) -> None:
        self._restart = np.where(chosen, self._interruptions.restart_seconds, self._restart)
        self._reload = np.where(chosen, self._interruptions.reload_seconds, self._reload)

    def _add(self, entry: str, seconds: Seconds) -> None:
        spent = np.where(self.running, seconds, 0.0)
        getattr(self.ledger, entry).__iadd__(spent)
        self.clock += spent
