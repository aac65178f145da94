import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given

from tests.unit.parallel.test_schedule import schedules
from training.parallel.__main__ import main
from training.parallel.program import Compute, Program, Receive, Send, check_programs, programs
from training.parallel.schedule import (
    Action,
    Kind,
    Schedule,
    ScheduleError,
    interleaved,
    one_forward_one_backward,
)
from training.parallel.simulate import unit_time

SCHEDULES = [
    one_forward_one_backward(1, 3),
    one_forward_one_backward(2, 4),
    one_forward_one_backward(4, 6),
    interleaved(1, 3, 2),
    interleaved(2, 2, 4),
    interleaved(3, 2, 5),
    interleaved(4, 3, 2),
]
each_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda s: f"{s.name}-{s.num_pipeline_stages}x{s.chunks_per_rank}-{s.num_micro_batches}"
)


@given(schedules)
def test_programs_end_even_if_every_send_waits_for_its_receive(schedule: Schedule) -> None:
    steps = programs(schedule)
    check_programs(steps)
    computed = tuple(tuple(step.action for step in program if isinstance(step, Compute)) for program in steps)
    assert computed == schedule.rows


@given(schedules)
def test_two_ranks_agree_on_the_order_of_all_transfers_between_them(schedule: Schedule) -> None:
    between: dict[tuple[int, int], list[tuple[int, Action]]] = defaultdict(list)
    for stage, program in enumerate(programs(schedule)):
        for step in program:
            if not isinstance(step, Compute):
                sender = stage if isinstance(step, Send) else step.peer_stage
                between[stage, step.peer_stage].append((sender, step.produced_by))
    for (stage, peer), transfers in between.items():
        assert transfers == between[peer, stage]
        assert stage != peer


@given(schedules)
def test_every_input_from_another_rank_travels_once_to_the_chunk_that_consumes_it(schedule: Schedule) -> None:
    num_stages = schedule.num_pipeline_stages
    needed = [
        (action.kind, action.chunk, action.micro_batch)
        for row in schedule.rows
        for action in row
        if num_stages > 1 and action.chunk != (0 if action.kind is Kind.forward else schedule.num_chunks - 1)
    ]
    steps = programs(schedule)
    for end in (Send, Receive):
        found = [(s.kind, s.chunk, s.micro_batch) for program in steps for s in program if isinstance(s, end)]
        assert sorted(found) == sorted(needed)
    assert all(
        step.chunk % num_stages == stage
        for stage, program in enumerate(steps)
        for step in program
        if isinstance(step, Receive)
    )


@given(schedules)
def test_a_send_follows_its_computation_and_a_receive_waits_for_none_that_could_come_after(schedule: Schedule) -> None:
    timeline = unit_time(schedule)
    start = {span.action: span.start_seconds for row in timeline.spans for span in row}
    end = {span.action: span.end_seconds for row in timeline.spans for span in row}
    for program in programs(schedule):
        for index, step in enumerate(program):
            before = [other.action for other in program[:index] if isinstance(other, Compute)]
            after = [other.action for other in program[index:] if isinstance(other, Compute)]
            if isinstance(step, Send):
                assert before[-1] == step.produced_by
            elif isinstance(step, Receive):
                assert Action(step.kind, step.chunk, step.micro_batch) in after
                assert all(start[action] < end[step.produced_by] for action in before)
                assert all(start[action] >= end[step.produced_by] for action in after)


def changed(steps: tuple[Program, ...], stage: int, program: list) -> tuple[Program, ...]:
    return (*steps[:stage], tuple(program), *steps[stage + 1 :])


@each_schedule
def test_a_step_too_few_or_too_many_is_refused(schedule: Schedule) -> None:
    steps = programs(schedule)
    for stage, program in enumerate(steps):
        for index, step in enumerate(program):
            for times in (0, 2):
                broken = changed(steps, stage, [*program[:index], *[step] * times, *program[index + 1 :]])
                with pytest.raises(ScheduleError):
                    check_programs(broken)


@each_schedule
def test_transfers_of_a_pair_in_two_orders_hang(schedule: Schedule) -> None:
    steps = programs(schedule)
    num_swapped = 0
    for stage, program in enumerate(steps):
        for index, (one, other) in enumerate(pairwise(program)):
            if isinstance(one, Compute) or isinstance(other, Compute) or one.peer_stage != other.peer_stage:
                continue
            num_swapped += 1
            broken = changed(steps, stage, [*program[:index], other, one, *program[index + 2 :]])
            with pytest.raises(ScheduleError, match=f"hang: .*pipeline stage {stage} stands at: {other}"):
                check_programs(broken)
    assert num_swapped > 0 or schedule.num_pipeline_stages == 1


@each_schedule
def test_a_computation_before_its_input_is_refused(schedule: Schedule) -> None:
    steps = programs(schedule)
    for stage, program in enumerate(steps):
        for index, step in enumerate(program):
            if isinstance(step, Receive):
                consumer = Compute(Action(step.kind, step.chunk, step.micro_batch))
                at = program.index(consumer)
                late = [*program[:index], *program[index + 1 : at + 1], step, *program[at + 1 :]]
                with pytest.raises(ScheduleError, match=f"cannot {consumer}: {step.produced_by} is not there|hang"):
                    check_programs(changed(steps, stage, late))


@each_schedule
def test_a_send_before_its_result_is_refused(schedule: Schedule) -> None:
    steps = programs(schedule)
    for stage, program in enumerate(steps):
        for index, (one, other) in enumerate(pairwise(program)):
            if isinstance(other, Send) and one == Compute(other.produced_by):
                early = [*program[:index], other, one, *program[index + 2 :]]
                with pytest.raises(ScheduleError, match=f"cannot {other}: it is not computed yet"):
                    check_programs(changed(steps, stage, early))


@each_schedule
def test_a_transfer_made_twice_by_both_ranks_is_refused(schedule: Schedule) -> None:
    steps = programs(schedule)
    for stage, program in enumerate(steps):
        for index, step in enumerate(program):
            if isinstance(step, Send):
                peer, receive = step.peer_stage, Receive(step.kind, step.chunk, step.micro_batch, peer_stage=stage)
                at = steps[peer].index(receive)
                twice = changed(steps, stage, [*program[:index], step, *program[index:]])
                twice = changed(twice, peer, [*steps[peer][:at], receive, *steps[peer][at:]])
                with pytest.raises(ScheduleError, match=f"cannot {step}: .*was sent before"):
                    check_programs(twice)


def test_two_ranks_that_both_receive_first_hang_and_are_named() -> None:
    forward, backward = Kind.forward, Kind.backward
    first = (
        Compute(Action(forward, 0, 0)),
        Receive(backward, 0, 0, peer_stage=1),
        Send(forward, 1, 0, peer_stage=1),
        Compute(Action(backward, 0, 0)),
    )
    last = (
        Receive(forward, 1, 0, peer_stage=0),
        Compute(Action(forward, 1, 0)),
        Compute(Action(backward, 1, 0)),
        Send(backward, 0, 0, peer_stage=0),
    )
    with pytest.raises(
        ScheduleError,
        match="hang: pipeline stage 0 stands at: receive 1B0 from pipeline stage 1; "
        "pipeline stage 1 stands at: receive 0F0 from pipeline stage 0",
    ):
        check_programs((first, last))
    check_programs(((first[0], first[2], first[1], first[3]), last))


def test_the_command_shows_diagram_checks_and_figures() -> None:
    command = "-m training.parallel --schedule interleaved --pipeline 4 --chunks 2 --micro-batches 8 --backward-ratio 2"
    repository = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("0 |a0a1a2a3b0b1b2b3a4a5a6. . . B0--a7B1--")
    assert "bubble     15.8% (equal chunks, backward = 2 x forward" in done.stdout  # 3 / (2 * 8 + 3)
    assert "in flight  11 9 7 5 micro-batches x chunks" in done.stdout
    assert "transfers  112 each step" in done.stdout  # forward and backward, 7 borders of chunks, 8 micro-batches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--pipeline 4 --chunks 2 --micro-batches 9 --schedule interleaved", "8 or 10 micro-batches work"),
        ("--pipeline 4 --chunks 2 --micro-batches 9", "one chunk on each pipeline stage, not 2"),
        ("--pipeline 0 --micro-batches 9", "argument --pipeline: invalid positive int value: '0'"),
        ("--pipeline 2 --micro-batches 9 --backward-ratio nan", "invalid positive float value: 'nan'"),
        ("--pipeline 2", "required: --micro-batches"),
    ],
)
def test_bad_arguments_end_with_one_clear_line_and_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("python -m training.parallel: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
