"""Where the wall time of a run went, over all its attempts: the goodput ledger.

Every second of rank 0 from a launch to its newest record stands in a step record (seconds, other_seconds) or a time
record, as its training thread's own books have it (training/fault_tolerance/heartbeat.py, `take_spent`). Between two
attempts lies what no rank could write down. What the books do not explain is not hidden: it is `unaccounted`.

Goodput is the share of steps that count, the ML productivity goodput of
https://cloud.google.com/blog/products/ai-machine-learning/goodput-metric-as-measure-of-ml-productivity without its
third factor (MFU), which the report has beside it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from training.reporting.metrics import Metrics
from training.reporting.records import Record, StartRecord, StepRecord, TimeRecord


class Spent(StrEnum):
    """What time went to; in the order in which it is shown."""

    compute = "compute"
    """Steps that count, without their data: forward, backward, update and the waiting for other ranks in them."""
    data = "data wait"
    """Waiting for the micro-batches of steps that count."""
    checkpoint = "checkpoint stall"
    """Training stood still for a checkpoint."""
    evaluation = "evaluation"
    stage_change = "stage change"
    """Engines built and filled after an attempt's first step (for the next training stage, after a rollback), gates."""
    other = "between steps"
    """Records, checks and decisions."""
    skipped = "skipped steps"
    """Steps that changed nothing."""
    undone = "steps undone"
    """Steps that were lost by a crash or a rollback, and the one that an attempt failed in, where it could say so."""
    start = "start"
    """The first attempt's launch, data and engine, until its first step or evaluation."""
    restart = "restart"
    """The same of every later attempt."""
    ending = "end noticed"
    """From the newest record of an attempt until its end was seen: an unfinished step, a hang, processes that leave."""
    down = "down"
    """From then on until the next launch: pauses, queues, people."""
    unaccounted = "unaccounted"
    """Wall time less all of the above: what the books do not explain; below 0 if they say more than passed."""


_SECTIONS = {
    "save": Spent.checkpoint,
    "evaluation": Spent.evaluation,
    "between": Spent.stage_change,
    "other": Spent.other,
    "end": Spent.other,
    "data": Spent.undone,
    "step": Spent.undone,
}
"""Of time records; those that a start has too are told apart by whether it has begun to train."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptTime:
    """One start of the run."""

    attempt: int
    begin_seconds: float
    """Unix time of its launch."""
    end_seconds: float
    """Unix time at which the next one was launched, or up to which the ledger goes."""
    spent: dict[Spent, float]
    """Seconds; together end less begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
    """The whole run."""

    wall_seconds: float
    """From the first launch to the newest record, or to the end of the last attempt if that is known."""
    spent: dict[Spent, float]
    """Seconds of all attempts, all categories; together the wall time."""
    waited_seconds: float
    """Of compute, what rank 0 waited in collectives: for other ranks, and for what they send."""
    attempts: list[AttemptTime]

    @property
    def share(self) -> float:
        """Return the share of the wall time in steps that count, 0 to 1; NaN of no time at all."""
        return self.spent[Spent.compute] / self.wall_seconds if self.wall_seconds else math.nan


@dataclass
class _Attempt:
    number: int
    start: StartRecord
    newest_seconds: float
    records: list[Record] = field(default_factory=list)


def goodput(metrics: Metrics, ends_seconds: Sequence[float] = ()) -> Goodput | None:
    """Return where the time went; None where no attempt wrote how it began (a version before this ledger).

    Args:
        metrics: of the run.
        ends_seconds: Unix times at which ends of attempts were seen (`starts.end_times`).
    """
    attempts = _attempts(metrics)
    if not attempts:
        return None
    counting = set(map(id, steps_that_count(metrics.records)))
    times: list[AttemptTime] = []
    for attempt, following in zip(attempts, [*attempts[1:], None], strict=True):
        next_launch = following.start.launched_seconds if following else math.inf
        spent = dict.fromkeys(Spent, 0.0)
        for what, seconds in _booked(attempt, counting):
            spent[what] += seconds
        newest = min(attempt.newest_seconds, next_launch)
        spent[Spent.unaccounted] = newest - attempt.start.launched_seconds - sum(spent.values())
        seen = min((end for end in ends_seconds if newest <= end <= next_launch), default=None)
        end = newest if seen is None else seen
        spent[Spent.ending] += end - newest
        if following:
            spent[Spent.down] += next_launch - end
        times.append(
            AttemptTime(
                attempt=attempt.number,
                begin_seconds=attempt.start.launched_seconds,
                end_seconds=next_launch if following else end,
                spent=spent,
            )
        )
    return Goodput(
        wall_seconds=times[-1].end_seconds - times[0].begin_seconds,
        spent={what: sum(time.spent[what] for time in times) for what in Spent},
        waited_seconds=sum(
            record.waited_seconds or 0.0
            for record in metrics.records
            if isinstance(record, StepRecord) and id(record) in counting and not record.skipped
        ),
        attempts=times,
    )


def _attempts(metrics: Metrics) -> list[_Attempt]:
    """Return the attempts that wrote how they began, in the order of the log."""
    attempts: list[_Attempt] = []
    for record, time_seconds in zip(metrics.records, metrics.times_seconds, strict=True):
        if isinstance(record, StartRecord):
            attempts.append(_Attempt(number=record.attempt, start=record, newest_seconds=time_seconds))
        elif attempts and record.attempt == attempts[-1].number:
            attempts[-1].newest_seconds = max(attempts[-1].newest_seconds, time_seconds)
            attempts[-1].records.append(record)
    return attempts


def steps_that_count(records: Sequence[Record]) -> list[StepRecord]:
    """Return the step records that no later one undid: a step is undone by any later one that is not further on."""
    kept: list[StepRecord] = []
    lowest = math.inf
    for record in reversed(records):
        if isinstance(record, StepRecord):
            if record.step < lowest:
                kept.append(record)
            lowest = min(lowest, record.step)
    return kept


def _booked(attempt: _Attempt, counting: set[int]) -> Iterator[tuple[Spent, float]]:
    """Give what an attempt's own records say, piece by piece."""
    has_begun = False
    beginning = Spent.restart if attempt.number else Spent.start
    for record in attempt.records:
        if isinstance(record, StepRecord):
            has_begun = True
            seconds, other = record.seconds, record.other_seconds or 0.0
            if id(record) not in counting:
                yield Spent.undone, seconds + other
            elif record.skipped:
                yield Spent.skipped, seconds
                yield Spent.other, other
            else:
                data = record.data_seconds or 0.0
                yield Spent.compute, seconds - data
                yield Spent.data, data
                yield Spent.other, other
        elif isinstance(record, TimeRecord):
            for section, seconds in record.spent.items():
                yield _SECTIONS.get(section, Spent.stage_change if has_begun else beginning), seconds
