import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parallel.test_schedule import schedules
from training.parallel.schedule import Action, Kind, Schedule, ScheduleError, interleaved, one_forward_one_backward
from training.parallel.simulate import Span, simulate, text

seconds = st.integers(1, 9)


@given(st.integers(1, 8), st.integers(1, 16), seconds, seconds)
def test_the_bubble_of_1f1b_is_the_closed_form(
    num_stages: int, num_micro_batches: int, forward: int, backward: int
) -> None:
    # arXiv:2104.04473, section 2.2.1: (p - 1) / m of the ideal time.
    timeline = simulate(
        one_forward_one_backward(num_stages, num_micro_batches),
        forward_seconds=[forward] * num_stages,
        backward_seconds=[backward] * num_stages,
    )
    assert timeline.makespan_seconds == (num_micro_batches + num_stages - 1) * (forward + backward)
    assert timeline.bubble == pytest.approx((num_stages - 1) / (num_micro_batches + num_stages - 1))


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), seconds, seconds)
def test_the_bubble_of_interleaving_is_smaller_by_the_chunks(
    num_stages: int, chunks: int, num_rounds: int, forward: int, backward: int
) -> None:
    # arXiv:2104.04473, section 2.2.2: (p - 1) / (v m) of the ideal time.
    num_micro_batches = num_rounds * num_stages
    timeline = simulate(
        interleaved(num_stages, chunks, num_micro_batches),
        forward_seconds=[forward] * num_stages * chunks,
        backward_seconds=[backward] * num_stages * chunks,
    )
    assert timeline.bubble == pytest.approx((num_stages - 1) / (chunks * num_micro_batches + num_stages - 1))


@given(schedules, seconds, st.data())
def test_every_action_starts_as_soon_as_its_row_and_its_inputs_allow(
    schedule: Schedule, transfer: int, data: st.DataObject
) -> None:
    each_chunk = st.lists(seconds, min_size=schedule.num_chunks, max_size=schedule.num_chunks)
    cost = {Kind.forward: data.draw(each_chunk), Kind.backward: data.draw(each_chunk)}
    timeline = simulate(
        schedule,
        forward_seconds=cost[Kind.forward],
        backward_seconds=cost[Kind.backward],
        transfer_seconds=transfer,
    )
    span_of = {span.action: span for row in timeline.spans for span in row}
    assert [[span.action for span in row] for row in timeline.spans] == [list(row) for row in schedule.rows]
    for stage, row in enumerate(schedule.rows):
        free = 0.0
        for action in row:
            span = span_of[action]
            arrivals = [
                span_of[needed].end_seconds + transfer * (needed.chunk % len(schedule.rows) != stage)
                for needed in schedule.inputs_of(action)
            ]
            assert span.start_seconds == max([free, *arrivals])
            assert span.end_seconds - span.start_seconds == cost[action.kind][action.chunk]
            free = span.end_seconds
        assert timeline.busy_seconds[stage] == sum(cost[action.kind][action.chunk] for action in row)


def test_a_timeline_worked_out_by_hand() -> None:
    timeline = simulate(
        one_forward_one_backward(2, 1), forward_seconds=[1, 2], backward_seconds=[3, 4], transfer_seconds=0.5
    )
    assert timeline.spans == (
        (Span(Action(Kind.forward, 0, 0), 0, 1), Span(Action(Kind.backward, 0, 0), 8, 11)),
        (Span(Action(Kind.forward, 1, 0), 1.5, 3.5), Span(Action(Kind.backward, 1, 0), 3.5, 7.5)),
    )
    assert timeline.makespan_seconds == 11
    assert timeline.busy_seconds == (4, 6)
    assert timeline.bubble == pytest.approx(12 / 22)


def test_costs_must_be_one_for_each_chunk() -> None:
    with pytest.raises(ValueError, match="2 forward and 4 backward costs for 4 chunks"):
        simulate(interleaved(2, 2, 2), forward_seconds=[1, 1], backward_seconds=[1] * 4)


def test_a_schedule_that_cannot_run_has_no_timeline() -> None:
    row = (Action(Kind.backward, 0, 0), Action(Kind.forward, 0, 0))
    with pytest.raises(ScheduleError, match="0B0, which waits for 0F0"):
        simulate(Schedule(name="by hand", chunks_per_rank=1, rows=(row,)), forward_seconds=[1], backward_seconds=[1])


def test_the_diagram_shows_chunks_micro_batches_and_bubbles() -> None:
    assert text(one_forward_one_backward(2, 3)).splitlines() == [
        "0 |a0a1. . A0--a2A1--. A2--|",
        "1 |. a0A0--a1A1--a2A2--. . |",
    ]
    assert text(interleaved(2, 2, 2)).splitlines() == [
        "0 |a0a1b0b1. . B0--. B1--A0--A1--|",
        "1 |. a0a1b0B0--b1B1--A0--A1--. . |",
    ]


@given(schedules)
def test_the_diagram_is_as_wide_as_the_schedule_is_long(schedule: Schedule) -> None:
    lines = text(schedule).splitlines()
    assert len(lines) == schedule.num_pipeline_stages
    assert len({len(line) for line in lines}) == 1
    for line, row in zip(lines, schedule.rows, strict=True):
        backwards = [action for action in row if action.kind is Kind.backward]
        assert sum(character.isupper() for character in line) == len(backwards)
        assert sum(character.islower() for character in line) == len(row) - len(backwards)
