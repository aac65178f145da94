"""What each rank of a pipeline executes: its row of the schedule with the transfers in between. No torch.

All programs are cut from one list of events, in which a transfer is a single event of both its ranks. So two ranks
agree on the order of all transfers between them, of both directions together. NCCL needs that: un-batched
point-to-point operations of a pair run in the order they were issued, so two ranks that both receive first wait for
each other forever. More: as every rank works down the same list, the programs reach their end even if each send blocks
until the peer has come to the receive (`check_programs`).
"""

from collections import deque
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeAlias

from training.parallel.schedule import Action, Kind, Schedule, ScheduleError, check
from training.parallel.simulate import unit_time


@dataclass(frozen=True, slots=True)
class Compute:
    """Run the action; wait before it for those inputs that were received."""

    action: Action

    def __str__(self) -> str:
        return f"compute {self.action}"


@dataclass(frozen=True, slots=True)
class _Transfer:
    """One tensor on its way to the chunk that will consume it: both ends name the consumer.

    forward: the activation that `chunk` takes as its input, made by the chunk before.
    backward: the gradient with respect to the output of `chunk`, made by the chunk after.
    """

    kind: Kind
    chunk: int
    micro_batch: int
    peer_stage: int
    """Pipeline stage at the other end."""

    @property
    def produced_by(self) -> Action:
        """The action whose result travels."""
        return Action(self.kind, self.chunk + (-1 if self.kind is Kind.forward else 1), self.micro_batch)


@dataclass(frozen=True, slots=True)
class Send(_Transfer):
    """Start sending; the tensor must stay untouched until the transfer is over."""

    def __str__(self) -> str:
        return f"send {self.produced_by} to pipeline stage {self.peer_stage}"


@dataclass(frozen=True, slots=True)
class Receive(_Transfer):
    """Start receiving; only the `Compute` that consumes the tensor waits for it."""

    def __str__(self) -> str:
        return f"receive {self.produced_by} from pipeline stage {self.peer_stage}"


Step: TypeAlias = Compute | Send | Receive
Program: TypeAlias = tuple[Step, ...]


def programs(schedule: Schedule) -> tuple[Program, ...]:
    """Return the program of every pipeline stage.

    Events are ordered by `unit_time`. A transfer happens when its producer ends: the sender posts it right after that
    computation, the receiver between those of its own computations that start before and after. At equal times
    transfers go first, since what starts then may consume them.

    Raises:
        ScheduleError: the schedule cannot run to its end.
    """
    timeline = unit_time(schedule)
    end_seconds = {span.action: span.end_seconds for row in timeline.spans for span in row}
    events: list[tuple[tuple[float, bool, int], dict[int, Step]]] = []
    for stage, row in enumerate(timeline.spans):
        for span in row:
            action = span.action
            events.append(((span.start_seconds, True, stage), {stage: Compute(action)}))
            for needed in schedule.inputs_of(action):
                sender = schedule.pipeline_stage_of(needed.chunk)
                if sender != stage:
                    what = action.kind, action.chunk, action.micro_batch
                    ends = {sender: Send(*what, peer_stage=stage), stage: Receive(*what, peer_stage=sender)}
                    events.append(((end_seconds[needed], False, sender), ends))
    steps: list[list[Step]] = [[] for _ in schedule.rows]
    for _, step_of in sorted(events, key=itemgetter(0)):
        for stage, step in step_of.items():
            steps[stage].append(step)
    return tuple(map(tuple, steps))


def check_programs(programs: tuple[Program, ...]) -> None:
    """Make sure that the programs compute a whole schedule and cannot hang, by executing them as strictly as can be.

    Each rank does one step at a time, and a send blocks until its peer stands at the matching receive. What ends under
    these rules ends under any: eager or buffered sends, one communicator or one for each pair.

    Raises:
        ScheduleError: they hang, or a result is computed, sent or consumed at the wrong place.
    """
    rows = tuple(tuple(step.action for step in program if isinstance(step, Compute)) for program in programs)
    num_chunks = 1 + max((action.chunk for row in rows for action in row), default=0)
    schedule = Schedule(name="programs", chunks_per_rank=-(-num_chunks // len(programs)), rows=rows)
    check(schedule)

    remaining = {stage: deque(program) for stage, program in enumerate(programs)}
    results: list[set[Action]] = [set() for _ in programs]

    def next_step(stage: int) -> Step | None:
        steps = remaining.get(stage)
        return steps[0] if steps else None

    def advance(stage: int) -> bool:
        """Do the next step if the peer is ready for it; a receive is done together with its send."""
        step = next_step(stage)
        if isinstance(step, Compute):
            missing = [str(needed) for needed in schedule.inputs_of(step.action) if needed not in results[stage]]
            if missing:
                raise ScheduleError(f"pipeline stage {stage} cannot {step}: {' and '.join(missing)} is not there")
            results[stage].add(step.action)
        elif isinstance(step, Send):
            peer, result = step.peer_stage, step.produced_by
            if next_step(peer) != Receive(step.kind, step.chunk, step.micro_batch, peer_stage=stage):
                return False
            if result not in results[stage] or result in results[peer]:
                raise ScheduleError(f"pipeline stage {stage} cannot {step}: it is not computed yet, or was sent before")
            results[peer].add(result)
            remaining[peer].popleft()
        else:
            return False
        remaining[stage].popleft()
        return True

    while any([advance(stage) for stage in remaining]):
        pass
    stuck = [f"pipeline stage {stage} stands at: {steps[0]}" for stage, steps in remaining.items() if steps]
    if stuck:
        raise ScheduleError("the programs hang: " + "; ".join(stuck))
