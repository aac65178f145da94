from hypothesis import given
from hypothesis import strategies as st

from training.engine.collectives import CollectiveLog
from training.fault_tolerance.blame import Status
from training.fault_tolerance.heartbeat import Heartbeat
from training.fault_tolerance.survey import latest_common_window


def told(heartbeat: Heartbeat) -> Status:
    windows = [[window.number, window.busy_seconds] for window in heartbeat.windows]
    return Status(beat=1, section="step", step=1, seconds=0.0, windows=windows)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8), st.integers(1, 3), st.integers(12, 40))
def test_ranks_that_told_up_to_three_windows_apart_are_compared_in_the_last_one_they_all_had(
    behind: list[int], window_steps: int, steps: int
) -> None:
    table = []
    for late in behind:
        heartbeat = Heartbeat(CollectiveLog())
        heartbeat.window_steps = window_steps
        for step in range(1, steps - late * window_steps + 1):
            heartbeat.step_ends(step, seconds=1.0, place=0)
        table.append(told(heartbeat))
    expected = steps // window_steps - max(behind)
    assert latest_common_window(table) == (expected if expected > 0 else None)


def test_nobody_is_compared_before_all_have_a_window_nor_with_work_of_another_kind() -> None:
    heartbeats = [Heartbeat(CollectiveLog()) for _ in range(2)]
    assert latest_common_window([]) is None
    heartbeats[0].step_ends(1, seconds=1.0, place=0)
    assert latest_common_window(map(told, heartbeats)) is None
    heartbeats[1].step_ends(1, seconds=1.0, place=0)
    assert latest_common_window(map(told, heartbeats)) == 1
    heartbeats[1].step_ends(2, seconds=1.0, place=1)
    assert latest_common_window(map(told, heartbeats)) is None
