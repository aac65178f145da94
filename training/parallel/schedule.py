"""Pipeline schedules as data: which chunk each pipeline stage runs forward or backward, and in what order. No torch.

The model is cut into `num_pipeline_stages * chunks_per_rank` chunks; chunk c lives on pipeline stage
c % num_pipeline_stages (arXiv:2104.04473, section 2.2). A schedule is a table with one row of actions for each pipeline
stage. When an action starts is not part of it: as soon as its row and its inputs allow (`simulate`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate, chain, count, product

from training.errors import ConfigError

SCHEDULE_NAMES = ("1f1b", "interleaved")


class ScheduleError(ValueError):
    """A table that cannot train: an action is missing, misplaced, or waits forever."""


class Kind(StrEnum):
    """Direction of a pass through a chunk."""

    forward = "F"
    backward = "B"


@dataclass(frozen=True, slots=True)
class Action:
    """One pass of one micro-batch through one chunk; printed as torch.distributed.pipelining does: 3F1."""

    kind: Kind
    chunk: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.chunk}{self.kind}{self.micro_batch}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """What every pipeline stage computes in one optimizer step.

    Raises:
        ScheduleError: there is no pipeline stage, or one has nothing to do.
    """

    name: str
    chunks_per_rank: int
    rows: tuple[tuple[Action, ...], ...]
    """rows[s] is what pipeline stage s computes, in order."""

    def __post_init__(self) -> None:
        if not self.rows or not all(self.rows):
            raise ScheduleError(f"{self.name}: at least one pipeline stage, and work for each of them, is needed")

    @property
    def num_pipeline_stages(self) -> int:
        """Rows of the table: ranks of one pipeline."""
        return len(self.rows)

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole model."""
        return self.num_pipeline_stages * self.chunks_per_rank

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one optimizer step."""
        return 1 + max(action.micro_batch for row in self.rows for action in row)

    def pipeline_stage_of(self, chunk: int) -> int:
        """Return the pipeline stage that a chunk lives on."""
        return chunk % self.num_pipeline_stages

    def inputs_of(self, action: Action) -> tuple[Action, ...]:
        """Return the actions that must be over before this one can start.

        Forward needs the activation of the chunk before; backward needs its own forward and the gradient from the
        chunk after.
        """
        chunk, micro_batch = action.chunk, action.micro_batch
        if action.kind is Kind.forward:
            return (Action(Kind.forward, chunk - 1, micro_batch),) if chunk > 0 else ()
        forward = Action(Kind.forward, chunk, micro_batch)
        if chunk == self.num_chunks - 1:
            return (forward,)
        return forward, Action(Kind.backward, chunk + 1, micro_batch)


def make_schedule(name: str, *, num_pipeline_stages: int, chunks_per_rank: int, num_micro_batches: int) -> Schedule:
    """Return the schedule of that name, one of SCHEDULE_NAMES.

    Raises:
        ConfigError: there is no such schedule, or it cannot be made of these numbers.
    """
    if name == "interleaved":
        return interleaved(num_pipeline_stages, chunks_per_rank, num_micro_batches)
    if name != "1f1b":
        raise ConfigError("parallel.schedule", name, "there is no such schedule", f"use {' or '.join(SCHEDULE_NAMES)}")
    if chunks_per_rank != 1:
        reason = f"it runs one chunk on each pipeline stage, not {chunks_per_rank}"
        raise ConfigError("parallel.schedule", name, reason, "parallel.schedule=interleaved works, or 1 chunk")
    return one_forward_one_backward(num_pipeline_stages, num_micro_batches)


def one_forward_one_backward(num_pipeline_stages: int, num_micro_batches: int) -> Schedule:
    """Return 1F1B with a flush (arXiv:2104.04473, section 2.1), for any number of micro-batches.

    Pipeline stage s holds activations of at most num_pipeline_stages - s micro-batches.
    """

    def row(pipeline_stage: int) -> tuple[Action, ...]:
        forwards, backwards = (
            [Action(kind, pipeline_stage, micro_batch) for micro_batch in range(num_micro_batches)] for kind in Kind
        )
        return _alternate(forwards, backwards, num_warm_up=num_pipeline_stages - 1 - pipeline_stage)

    return Schedule(name="1f1b", chunks_per_rank=1, rows=tuple(map(row, range(num_pipeline_stages))))


def interleaved(num_pipeline_stages: int, chunks_per_rank: int, num_micro_batches: int) -> Schedule:
    """Return interleaved 1F1B (arXiv:2104.04473, section 2.2): a bubble `chunks_per_rank` times smaller than 1F1B's.

    Each chunk of a rank runs a whole round of micro-batches before the rank's next chunk does. A round is one
    micro-batch for each pipeline stage where that divides; otherwise the micro-batches are dealt evenly into as many
    rounds as there are full ones, as torch.distributed.pipelining.ScheduleInterleaved1F1B does, so that fewer
    micro-batches than pipeline stages work too. With one chunk on each rank this is 1F1B.

    Pipeline stage s holds at most (chunks_per_rank - 1) * round + 2 * (num_pipeline_stages - 1 - s) + 1 activations of
    one chunk, and a round is shorter than 2 * num_pipeline_stages: more micro-batches need no more memory.

    Raises:
        ConfigError: the micro-batches cannot be dealt evenly.
    """
    num_rounds = max(1, num_micro_batches // num_pipeline_stages)
    if not interleaving_fits(num_pipeline_stages, num_micro_batches):
        fewer, more = (
            next(number for number in numbers if interleaving_fits(num_pipeline_stages, number))
            for numbers in (range(num_micro_batches - 1, 0, -1), count(num_micro_batches + 1))
        )
        raise ConfigError(
            "parallel.schedule",
            "interleaved",
            f"{num_micro_batches} micro-batches over {num_pipeline_stages} pipeline stages cannot be dealt evenly into "
            f"{num_rounds} rounds",
            f"{fewer} or {more} micro-batches work, or parallel.schedule=1f1b",
        )
    if chunks_per_rank == 1:
        return replace(one_forward_one_backward(num_pipeline_stages, num_micro_batches), name="interleaved")
    round_size = num_micro_batches // num_rounds
    round_starts = range(0, num_micro_batches, round_size)

    def row(pipeline_stage: int) -> tuple[Action, ...]:
        chunks = [pipeline_stage + index * num_pipeline_stages for index in range(chunks_per_rank)]
        forwards, backwards = (
            [
                Action(kind, chunk, start + index)
                for start, chunk, index in product(round_starts, in_order, range(round_size))
            ]
            for kind, in_order in ((Kind.forward, chunks), (Kind.backward, chunks[::-1]))
        )
        # Two per hop to the last pipeline stage: the activation's way there and its gradient's way back.
        hops = num_pipeline_stages - 1 - pipeline_stage
        return _alternate(forwards, backwards, num_warm_up=(chunks_per_rank - 1) * round_size + 2 * hops)

    rows = tuple(map(row, range(num_pipeline_stages)))
    return Schedule(name="interleaved", chunks_per_rank=chunks_per_rank, rows=rows)


def interleaving_fits(num_pipeline_stages: int, num_micro_batches: int) -> bool:
    """Return whether `interleaved` can deal so many micro-batches evenly into rounds."""
    return num_micro_batches % max(1, num_micro_batches // num_pipeline_stages) == 0


def _alternate(forwards: Sequence[Action], backwards: Sequence[Action], *, num_warm_up: int) -> tuple[Action, ...]:
    """Return one row: forwards to warm up, then one forward and one backward in turn, then the backwards left over."""
    steady = list(zip(forwards[num_warm_up:], backwards, strict=False))
    return (*forwards[:num_warm_up], *chain.from_iterable(steady), *backwards[len(steady) :])


def check(schedule: Schedule) -> None:
    """Make sure that a table computes every gradient, in a fixed order, and comes to its end.

    Every chunk runs every micro-batch once forward and once backward, on its own pipeline stage and in micro-batch
    order: then a chunk's gradients are complete after the backward of the last micro-batch, and are summed in the same
    order under every schedule.

    Raises:
        ScheduleError: naming the action that is misplaced or missing, or all that wait for each other.
    """
    num_micro_batches = schedule.num_micro_batches
    num_done: Counter[tuple[Kind, int]] = Counter()
    for pipeline_stage, row in enumerate(schedule.rows):
        for action in row:
            if action.chunk not in range(pipeline_stage, schedule.num_chunks, schedule.num_pipeline_stages):
                raise ScheduleError(
                    f"pipeline stage {pipeline_stage} has {action}, but chunk {action.chunk} is not its"
                )
            due = Action(action.kind, action.chunk, num_done[action.kind, action.chunk])
            if action != due:
                raise ScheduleError(f"pipeline stage {pipeline_stage} has {action} where {due} is due")
            num_done[action.kind, action.chunk] += 1
    for kind, chunk in product(Kind, range(schedule.num_chunks)):
        if num_done[kind, chunk] < num_micro_batches:
            missing = Action(kind, chunk, num_done[kind, chunk])
            raise ScheduleError(f"pipeline stage {schedule.pipeline_stage_of(chunk)} lacks {missing}")
    execution_order(schedule)


def execution_order(schedule: Schedule) -> list[Action]:
    """Return all actions in an order in which each one stands after its inputs and after those before it in its row.

    Raises:
        ScheduleError: there is no such order; names each stuck pipeline stage and what it waits for.
    """
    order: dict[Action, None] = {}
    position = [0] * schedule.num_pipeline_stages
    moved = True
    while moved:
        moved = False
        for pipeline_stage, row in enumerate(schedule.rows):
            while position[pipeline_stage] < len(row):
                action = row[position[pipeline_stage]]
                if not all(needed in order for needed in schedule.inputs_of(action)):
                    break
                order[action] = None
                position[pipeline_stage] += 1
                moved = True
    stuck = [
        f"pipeline stage {pipeline_stage} is at {row[done]}, which waits for "
        + " and ".join(str(needed) for needed in schedule.inputs_of(row[done]) if needed not in order)
        for pipeline_stage, (row, done) in enumerate(zip(schedule.rows, position, strict=True))
        if done < len(row)
    ]
    if stuck:
        raise ScheduleError("the schedule cannot go on: " + "; ".join(stuck))
    return list(order)


def peak_in_flight(schedule: Schedule) -> tuple[int, ...]:
    """Return for each pipeline stage the most activations it holds at once, in micro-batches × chunks."""

    def peak(row: tuple[Action, ...]) -> int:
        alive = accumulate(1 if action.kind is Kind.forward else -1 for action in row)
        return max(alive)

    return tuple(map(peak, schedule.rows))
