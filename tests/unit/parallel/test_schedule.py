from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise, product

import pytest
from deepspeed.runtime.pipe.schedule import BackwardPass, ForwardPass, TrainSchedule
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.pipelining import ScheduleInterleaved1F1B

from training.errors import ConfigError
from training.parallel.schedule import (
    Action,
    Kind,
    Schedule,
    ScheduleError,
    check,
    execution_order,
    interleaved,
    interleaving_fits,
    make_schedule,
    one_forward_one_backward,
    peak_in_flight,
)

SHAPES = list(product(range(1, 9), range(1, 5), range(1, 17)))
"""(pipeline stages, chunks on each, micro-batches)"""
FITTING = [shape for shape in SHAPES if interleaving_fits(shape[0], shape[2])]
INTERLEAVED = [shape for shape in FITTING if shape[1] > 1]

schedules = st.one_of(
    st.sampled_from(SHAPES).map(lambda shape: one_forward_one_backward(shape[0], shape[2])),
    st.sampled_from(FITTING).map(lambda shape: interleaved(*shape)),
)


def is_sound(schedule: Schedule, num_micro_batches: int) -> bool:
    """Decide by the definition, on a graph of everything that must come before something else."""
    whole = list(product(Kind, range(schedule.num_chunks), range(num_micro_batches)))
    found = [(action.kind, action.chunk, action.micro_batch) for row in schedule.rows for action in row]
    if sorted(found) != sorted(whole):
        return False
    graph = TopologicalSorter[Action]()
    for stage, row in enumerate(schedule.rows):
        if any(action.chunk % len(schedule.rows) != stage for action in row):
            return False
        for earlier, later in pairwise(row):
            graph.add(later, earlier)
    for chunk, micro_batch in product(range(schedule.num_chunks), range(num_micro_batches)):
        forward, backward = (Action(kind, chunk, micro_batch) for kind in Kind)
        graph.add(backward, forward)
        if chunk > 0:
            graph.add(forward, replace(forward, chunk=chunk - 1))
            graph.add(replace(backward, chunk=chunk - 1), backward)
        if micro_batch > 0:
            for action in (forward, backward):
                graph.add(action, replace(action, micro_batch=micro_batch - 1))
    try:
        graph.prepare()
    except CycleError:
        return False
    return True


@given(schedules)
def test_every_schedule_is_sound(schedule: Schedule) -> None:
    check(schedule)
    assert is_sound(schedule, schedule.num_micro_batches)


@given(schedules, st.sampled_from(["swap", "drop", "repeat", "move"]), st.data())
def test_a_changed_table_is_refused_unless_it_is_sound_by_chance(
    schedule: Schedule, change: str, data: st.DataObject
) -> None:
    rows = [list(row) for row in schedule.rows]
    places = st.sampled_from([(stage, index) for stage, row in enumerate(rows) for index in range(len(row))])
    (stage, index), (other_stage, other_index) = data.draw(places), data.draw(places)
    if change == "swap":
        one, other = rows[stage][index], rows[other_stage][other_index]
        rows[stage][index], rows[other_stage][other_index] = other, one
    elif change == "repeat":
        rows[other_stage].insert(other_index, rows[stage][index])
    else:
        action = rows[stage].pop(index)
        if change == "move":
            rows[other_stage].insert(other_index, action)
    changed = replace(schedule, rows=tuple(map(tuple, rows)))
    if is_sound(changed, schedule.num_micro_batches):
        check(changed)
    else:
        with pytest.raises(ScheduleError):
            check(changed)


F, B = Kind.forward, Kind.backward


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[Action(F, 0, 0), Action(B, 0, 0), Action(B, 0, 0)], [Action(F, 1, 0), Action(B, 1, 0)]], "0B0 where 0B1 is"),
        ([[Action(F, 0, 0), Action(B, 0, 0)], [Action(F, 1, 0)]], "pipeline stage 1 lacks 1B0"),
        ([[Action(F, 0, 0), Action(B, 0, 0), Action(F, 1, 0)], [Action(B, 1, 0)]], "stage 0 has 1F0, but chunk 1 is"),
        ([[Action(F, 0, 0), Action(B, 0, 0)], [Action(F, 3, 0), Action(B, 1, 0)]], "1 has 3F0, but chunk 3 is not its"),
        (
            [[Action(B, 0, 0), Action(F, 0, 0)], [Action(F, 1, 0), Action(B, 1, 0)]],
            "pipeline stage 0 is at 0B0, which waits for 0F0 and 1B0; pipeline stage 1 is at 1F0, which waits for 0F0",
        ),
    ],
)
def test_a_refusal_names_the_actions_at_fault(rows: list[list[Action]], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        check(Schedule(name="by hand", chunks_per_rank=1, rows=tuple(map(tuple, rows))))


@pytest.mark.parametrize("rows", [(), ((Action(F, 0, 0), Action(B, 0, 0)), ())])
def test_a_pipeline_stage_without_work_is_refused(rows: tuple[tuple[Action, ...], ...]) -> None:
    with pytest.raises(ScheduleError, match="by hand: at least one pipeline stage, and work for each"):
        Schedule(name="by hand", chunks_per_rank=1, rows=rows)


@given(schedules)
def test_the_execution_order_keeps_rows_and_inputs(schedule: Schedule) -> None:
    order = execution_order(schedule)
    at = {action: index for index, action in enumerate(order)}
    assert len(at) == len(order) == sum(map(len, schedule.rows))
    assert all(at[earlier] < at[later] for row in schedule.rows for earlier, later in pairwise(row))
    assert all(at[needed] < at[action] for action in order for needed in schedule.inputs_of(action))


@given(st.integers(1, 8), st.integers(1, 16))
def test_1f1b_holds_a_micro_batch_for_each_pipeline_stage_from_here_to_the_last(
    num_stages: int, num_micro_batches: int
) -> None:
    peaks = peak_in_flight(one_forward_one_backward(num_stages, num_micro_batches))
    assert peaks == tuple(min(num_micro_batches, num_stages - stage) for stage in range(num_stages))


@given(st.sampled_from(INTERLEAVED), st.integers(1, 8))
def test_interleaving_holds_an_amount_that_more_rounds_do_not_raise(shape: tuple[int, int, int], times: int) -> None:
    num_stages, chunks, num_micro_batches = shape
    round_size = num_micro_batches // max(1, num_micro_batches // num_stages)
    assert round_size < 2 * num_stages
    bounds = [(chunks - 1) * round_size + 2 * (num_stages - 1 - stage) + 1 for stage in range(num_stages)]
    peaks = peak_in_flight(interleaved(*shape))
    assert peaks == tuple(min(bound, chunks * num_micro_batches) for bound in bounds)
    more = peak_in_flight(interleaved(num_stages, chunks, num_stages * times))
    assert all(peak <= chunks * num_stages + num_stages for peak in more)


@pytest.mark.parametrize(("num_stages", "num_micro_batches"), [*product(range(1, 7), range(1, 14))])
def test_1f1b_is_deepspeeds_train_schedule(num_stages: int, num_micro_batches: int) -> None:
    letters = {ForwardPass: "F", BackwardPass: "B"}
    for stage, row in enumerate(one_forward_one_backward(num_stages, num_micro_batches).rows):
        peer = [
            type(command) for commands in TrainSchedule(num_micro_batches, num_stages, stage) for command in commands
        ]
        assert "".join(action.kind for action in row) == "".join(letters.get(command, "") for command in peer)


@given(st.sampled_from(INTERLEAVED))
def test_interleaving_is_torchs_schedule(shape: tuple[int, int, int]) -> None:
    num_stages, chunks, num_micro_batches = shape
    peer = ScheduleInterleaved1F1B.__new__(ScheduleInterleaved1F1B)  # its constructor wants modules and a process group
    peer.pp_group_size, peer.n_local_stages, peer._n_microbatches = num_stages, chunks, num_micro_batches
    peer.microbatches_per_round = num_micro_batches // max(1, num_micro_batches // num_stages)
    for stage, row in enumerate(interleaved(num_stages, chunks, num_micro_batches).rows):
        theirs = [str(action) for action in peer._calculate_single_rank_operations(stage) if action is not None]
        assert [str(action) for action in row] == theirs


@pytest.mark.parametrize(("num_stages", "num_micro_batches"), [(1, 5), (4, 3), (4, 8), (4, 10)])
def test_interleaving_one_chunk_is_1f1b(num_stages: int, num_micro_batches: int) -> None:
    plain = one_forward_one_backward(num_stages, num_micro_batches)
    assert interleaved(num_stages, 1, num_micro_batches).rows == plain.rows


@given(st.sampled_from([shape for shape in SHAPES if shape not in FITTING]))
def test_interleaving_is_refused_with_the_nearest_numbers_that_work(shape: tuple[int, int, int]) -> None:
    num_stages, chunks, num_micro_batches = shape
    fits = [number for number in range(1, 40) if interleaving_fits(num_stages, number)]
    fewer = max(number for number in fits if number < num_micro_batches)
    more = min(number for number in fits if number > num_micro_batches)
    with pytest.raises(ConfigError, match=f"{fewer} or {more} micro-batches work"):
        interleaved(*shape)
    check(interleaved(num_stages, chunks, fewer))
    check(interleaved(num_stages, chunks, more))


def test_schedules_have_names() -> None:
    numbers = {"num_pipeline_stages": 2, "num_micro_batches": 4}
    assert make_schedule("1f1b", chunks_per_rank=1, **numbers) == one_forward_one_backward(2, 4)
    assert make_schedule("interleaved", chunks_per_rank=3, **numbers) == interleaved(2, 3, 4)
    with pytest.raises(ConfigError, match=r"parallel.schedule=gpipe: there is no such schedule\n.*1f1b or interleaved"):
        make_schedule("gpipe", chunks_per_rank=1, **numbers)
    with pytest.raises(ConfigError, match="one chunk on each pipeline stage, not 2"):
        make_schedule("1f1b", chunks_per_rank=2, **numbers)
