"""How much of a run's time trains it, in closed form: Meta's formula, and the exact mean. No torch.

ETTR, the effective training time ratio: time of steps that count, by the whole time from start to end
(arXiv:2410.21680). Steps that a failure undid do not count. How it scatters is `planner.goodput_simulation`'s.
"""

import math

from training.planner.checkpoint_cost import CheckpointCost
from training.planner.reliability import SECONDS_PER_DAY, Interruptions

_RARE = 1e-12
"""Failures in an interval that are none, as their part of the mean is below rounding."""


def published_ettr(
    *, failures_per_day: float, restart_seconds: float, interval_seconds: float, write_seconds: float
) -> float:
    """Return Meta's expectation of ETTR: (1 - N r (u0 + dt / 2)) / (1 + w / dt).

    Source: arXiv:2410.21680v2, section on E[ETTR]. It is of first order: right while a failure's cost is small beside
    the time between failures, and negative where it is not.

    Args:
        failures_per_day: of the job, N r.
        restart_seconds: from a failure to the next step, u0.
        interval_seconds: training between checkpoints, dt.
        write_seconds: training stands still for each checkpoint, w.
    """
    lost = failures_per_day / SECONDS_PER_DAY * (restart_seconds + interval_seconds / 2)
    return (1 - lost) / (1 + write_seconds / interval_seconds)


def expected_ettr(*, interval_seconds: float, checkpoint: CheckpointCost, interruptions: Interruptions) -> float:
    """Return the mean ETTR of a long run, exact for failures at a constant rate.

    With time between failures M, stall s, interval t, time w from state to commit, detection D and restart R (the
    reading included): t exp(-(R + w - s) / M) / ((M + D) (exp((t + s) / M) - 1)).

    For w = s and D = 0 it is the complete cost function of J. T. Daly (Future Generation Computer Systems 22, 2006):
    M exp(R / M) (exp((t + s) / M) - 1) seconds for t seconds of work. The other two terms follow from the
    same argument: k checkpoints are kept of a time between failures u if u >= k (t + s) + w - s; and the time from one
    failure to the next start is (M + D) exp(R / M) - M, as each further failure begins it anew.

    Waiting for spares and planned interruptions are not in it.

    Args:
        interval_seconds: training between checkpoints, above 0.
        checkpoint: times of one checkpoint; while one is written no other begins.
        interruptions: what interrupts the job.
    """
    interval = spaced_interval(interval_seconds, checkpoint)
    stall, late = checkpoint.stall_seconds, checkpoint.write_seconds - checkpoint.stall_seconds
    mtbf = interruptions.mtbf_seconds
    period = interval + stall
    if period < _RARE * mtbf:
        return interval / period
    detection = interruptions.detection_seconds + interruptions.manual_share * interruptions.manual_seconds
    setup = interruptions.restart_seconds + interruptions.reload_seconds
    # exp(-x) / (1 - exp(-x)) is 1 / (exp(x) - 1) that does not overflow.
    kept = math.exp(-(setup + late + period) / mtbf) / -math.expm1(-period / mtbf)
    return interval * kept / (mtbf + detection)


def spaced_interval(interval_seconds: float, checkpoint: CheckpointCost) -> float:
    """Return the interval that training keeps: none begins a checkpoint before the last one is written.

    Args:
        interval_seconds: what was asked for.
        checkpoint: times of one checkpoint.
    """
    return max(interval_seconds, checkpoint.write_seconds - checkpoint.stall_seconds)
