"""When each action of a schedule starts and ends, given what the passes and the transfers cost. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from training.parallel.schedule import Action, Kind, Schedule, execution_order


@dataclass(frozen=True, slots=True)
class Span:
    """One action and the time it takes."""

    action: Action
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """When every pipeline stage computes what in one optimizer step."""

    spans: tuple[tuple[Span, ...], ...]
    """spans[s] belongs to pipeline stage s, in order of time."""

    @property
    def makespan_seconds(self) -> float:
        """From the first start to the last end."""
        return max(row[-1].end_seconds for row in self.spans)

    @property
    def busy_seconds(self) -> tuple[float, ...]:
        """Time in which each pipeline stage computes."""
        return tuple(sum(span.end_seconds - span.start_seconds for span in row) for row in self.spans)

    @property
    def bubble(self) -> float:
        """Share of the pipeline's time, 0 to 1, in which its ranks are idle."""
        return 1 - sum(self.busy_seconds) / (len(self.spans) * self.makespan_seconds)


def simulate(
    schedule: Schedule,
    *,
    forward_seconds: Sequence[float],
    backward_seconds: Sequence[float],
    transfer_seconds: float = 0.0,
) -> Timeline:
    """Return the timeline in which every action starts as soon as its row and its inputs allow.

    Args:
        schedule: the table.
        forward_seconds: cost of one micro-batch's forward pass, for each chunk.
        backward_seconds: the same for the backward pass.
        transfer_seconds: time from an action's end to its result's arrival on another pipeline stage. Transfers run
            beside the computation and do not slow each other down: a real pipeline is never faster.

    Raises:
        ScheduleError: the schedule cannot run to its end.
        ValueError: the costs are not one for each chunk.
    """
    if not len(forward_seconds) == len(backward_seconds) == schedule.num_chunks:
        costs = f"{len(forward_seconds)} forward and {len(backward_seconds)} backward costs"
        raise ValueError(f"{costs} for {schedule.num_chunks} chunks")
    cost_seconds = {Kind.forward: forward_seconds, Kind.backward: backward_seconds}
    end_seconds: dict[Action, float] = {}
    spans: list[list[Span]] = [[] for _ in schedule.rows]
    for action in execution_order(schedule):
        pipeline_stage = schedule.pipeline_stage_of(action.chunk)
        row = spans[pipeline_stage]
        start = row[-1].end_seconds if row else 0.0
        for needed in schedule.inputs_of(action):
            is_local = schedule.pipeline_stage_of(needed.chunk) == pipeline_stage
            start = max(start, end_seconds[needed] + (0.0 if is_local else transfer_seconds))
        end_seconds[action] = start + cost_seconds[action.kind][action.chunk]
        row.append(Span(action, start, end_seconds[action]))
    return Timeline(tuple(map(tuple, spans)))


def unit_time(schedule: Schedule) -> Timeline:
    """Return the timeline of equal chunks with free transfers: forward takes 1, backward 2."""
    return simulate(schedule, forward_seconds=[1.0] * schedule.num_chunks, backward_seconds=[2.0] * schedule.num_chunks)


def text(schedule: Schedule) -> str:
    """Return a diagram of `unit_time`: a line for each pipeline stage, a column for each time slot.

    A pass is a letter and its micro-batch. The letter is the chunk's place on its rank (a first, b second, …), capital
    for backward, which is drawn two slots long. A dot is an idle slot.
    """
    timeline = unit_time(schedule)
    slot_width = 1 + len(str(schedule.num_micro_batches - 1))
    name_width = len(str(schedule.num_pipeline_stages - 1))

    def line(pipeline_stage: int) -> str:
        slots = ["." + " " * (slot_width - 1)] * int(timeline.makespan_seconds)
        for span in timeline.spans[pipeline_stage]:
            action, slot = span.action, int(span.start_seconds)
            letter = ascii_lowercase[action.chunk // schedule.num_pipeline_stages % len(ascii_lowercase)]
            if action.kind is Kind.forward:
                slots[slot] = f"{letter}{action.micro_batch}".ljust(slot_width)
            else:
                slots[slot : slot + 2] = (
                    f"{letter.upper()}{action.micro_batch}".ljust(slot_width, "-"),
                    "-" * slot_width,
                )
        return f"{pipeline_stage:>{name_width}} |{''.join(slots)}|"

    return "\n".join(map(line, range(schedule.num_pipeline_stages)))
