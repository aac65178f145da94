"""Running one rank for all of its class finds what running every rank finds, and what parallel/program.py finds."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rehearsal.layouts import INTERLEAVED, rehearsal
from training.config.schema import Regather
from training.parallel import program as schedule_program
from training.parallel.schedule import ScheduleError, make_schedule
from training.rehearsal.execution import execute
from training.rehearsal.grid import Grid
from training.rehearsal.operations import Compute, Operation, Receive, Send
from training.rehearsal.program import Phase, Texts

LAYOUTS: list[dict[str, Any]] = [
    {"pipeline": 2, "data": 4, "zero_stage": 3, "accumulation": 2, "tied": True},
    {"pipeline": 4, "data": 2, "zero_stage": 2, "accumulation": 4, **INTERLEAVED},
    {"pipeline": 2, "data": 4, "zero_stage": 3, "accumulation": 2, "expert": 2, "experts": True},
    {"pipeline": 3, "data": 2, "zero_stage": 3, "accumulation": 3, "regather": Regather.per_step},
]
SOUND = [rehearsal(**layout) for layout in LAYOUTS]


@settings(max_examples=150)
@given(st.integers(0, len(SOUND) - 1), st.data())
def test_a_program_changed_on_one_rank_is_judged_alike_when_every_rank_is_run(number: int, draw: st.DataObject) -> None:
    sound = SOUND[number]
    grid, texts = sound.plan.grid, sound.phases[Phase.step]
    rank = draw.draw(st.integers(0, grid.world_size - 1))
    text = texts.of(rank)
    one, other = (draw.draw(st.integers(0, len(text) - 1)) for _ in range(2))
    swapped = list(text)
    swapped[one], swapped[other] = text[other], text[one]
    changed = sound.with_text(Phase.step, rank, tuple(swapped)).phases[Phase.step]
    each = Texts(tuple(changed.of(r) for r in range(grid.world_size)), np.arange(grid.world_size, dtype=np.int32))
    by_class = execute(Phase.step, changed, grid, sound.plan.schedule)
    one_by_one = execute(Phase.step, each, grid, sound.plan.schedule)
    assert bool(by_class) == bool(one_by_one)
    if by_class:
        names_it = [rank in finding.ranks or f"rank {rank} " in finding.message for finding in by_class]
        assert any(names_it)


@settings(max_examples=150)
@given(st.sampled_from([("1f1b", 3, 1, 4), ("interleaved", 2, 2, 4), ("1f1b", 4, 1, 3)]), st.data())
def test_pipelines_are_judged_as_check_programs_judges_them(
    kind: tuple[str, int, int, int], draw: st.DataObject
) -> None:
    name, stages, chunks, micro_batches = kind
    schedule = make_schedule(name, num_pipeline_stages=stages, chunks_per_rank=chunks, num_micro_batches=micro_batches)
    programs = [list(program) for program in schedule_program.programs(schedule)]
    program = programs[draw.draw(st.integers(0, stages - 1))]
    one = draw.draw(st.integers(0, len(program) - 2))
    other = draw.draw(st.integers(one + 1, len(program) - 1))
    program[one], program[other] = program[other], program[one]
    changed = tuple(map(tuple, programs))
    try:
        schedule_program.check_programs(changed)
        is_sound = True
    except ScheduleError:
        is_sound = False
    texts = Texts(tuple(map(as_operations, changed)), np.arange(stages, dtype=np.int32))
    found = execute(Phase.step, texts, Grid(pipeline=stages), schedule)
    if is_sound:
        assert found == []
    # check_programs also wants micro-batches in the order in which gradients are summed; that is no hang.
    elif not any(isinstance(step, schedule_program.Compute) for step in (program[one], program[other])):
        assert found


def as_operations(program: schedule_program.Program) -> tuple[Operation, ...]:
    operations: list[Operation] = []
    for step in program:
        match step:
            case schedule_program.Compute(action):
                operations.append(Compute(action))
            case schedule_program.Send():
                operations.append(Send(step.produced_by, step.peer_stage, 8, "float32"))
            case schedule_program.Receive():
                operations.append(Receive(step.produced_by, step.peer_stage, 8, "float32"))
    return tuple(operations)


@pytest.mark.parametrize("number", range(len(SOUND)))
def test_what_was_not_changed_is_sound(number: int) -> None:
    assert SOUND[number].check() == []
