"""What follows from an end: a table for each exit code, and properties over all histories."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.requeue import Attempt, Limits, Requeue, Stop, decide
from training.errors import ExitCode

LIMITS = Limits(max_requeues=10, no_progress_starts=3)
AGAIN = {
    ExitCode.FAILED,
    ExitCode.PEER_LOST,
    ExitCode.STORAGE,
    ExitCode.STOPPED,
    ExitCode.HANG,
    ExitCode.PREFLIGHT,
    ExitCode.SILENT_CORRUPTION,
}
BLAMING = {ExitCode.HANG, ExitCode.PREFLIGHT, ExitCode.SILENT_CORRUPTION}

codes = st.sampled_from(list(ExitCode)) | st.none()
histories = st.lists(
    st.builds(Attempt, exit_code=codes, step=st.integers(0, 4), blamed=st.sampled_from([(), ("node1",)])),
    min_size=1,
    max_size=12,
)
limits = st.builds(Limits, max_requeues=st.integers(0, 20), no_progress_starts=st.integers(2, 5))
node_names = st.lists(st.sampled_from(["node1", "node2", "node3"]), max_size=4)


def ended(code: ExitCode | None, step: int = 5) -> Attempt:
    return Attempt(exit_code=code, step=step)


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_every_exit_code_decides(code: ExitCode) -> None:
    decision = decide([ended(code)], blamed=["node2"], restarts=0, limits=LIMITS)
    assert isinstance(decision, Requeue) == (code in AGAIN)
    assert decision.reason
    if isinstance(decision, Stop):
        assert decision.exit_code is code
    else:
        assert decision.exclude == (("node2",) if code in BLAMING else ())
        assert ("node2" in decision.reason) == (code in BLAMING)


def test_a_start_that_was_lost_with_its_node_counts_as_a_lost_peer() -> None:
    assert isinstance(decide([ended(None)], blamed=[], restarts=0, limits=LIMITS), Requeue)


def test_three_failures_at_one_step_stop_the_run_and_say_so() -> None:
    attempts = [ended(ExitCode.PEER_LOST, 3), ended(ExitCode.FAILED, 7), ended(None, 7)]
    assert isinstance(decide(attempts, blamed=[], restarts=2, limits=LIMITS), Requeue)
    decision = decide([*attempts, ended(ExitCode.HANG, 7)], blamed=["node1"], restarts=3, limits=LIMITS)
    assert isinstance(decision, Stop)
    assert decision.exit_code is ExitCode.NO_PROGRESS
    assert "3 starts in a row failed at step 7" in decision.reason


def test_preemptions_and_failed_checks_say_nothing_about_a_step() -> None:
    failed_checks = Attempt(exit_code=ExitCode.PREFLIGHT, step=5, blamed=("node1",))
    for attempt in (ended(ExitCode.STOPPED), failed_checks):
        assert isinstance(decide([attempt] * 9, blamed=["node1"], restarts=8, limits=LIMITS), Requeue)


def test_checks_that_fail_through_no_nodes_fault_fail_again() -> None:
    decision = decide([ended(ExitCode.PREFLIGHT)] * 3, blamed=[], restarts=2, limits=LIMITS)
    assert isinstance(decision, Stop)
    assert decision.exit_code is ExitCode.NO_PROGRESS


@given(histories, limits, node_names, st.integers(0, 30))
def test_nothing_restarts_for_ever(history: list[Attempt], limits: Limits, blamed: list[str], restarts: int) -> None:
    decision = decide(history, blamed=blamed, restarts=restarts, limits=limits)
    if restarts >= limits.max_requeues:
        assert isinstance(decision, Stop)
    if isinstance(decision, Stop) and decision.exit_code is not ExitCode.NO_PROGRESS:
        last = history[-1].exit_code
        assert decision.exit_code is (ExitCode.PEER_LOST if last is None else last)


@given(histories, limits, node_names, st.integers(0, 30))
def test_a_run_is_called_stuck_only_if_its_last_starts_failed_at_one_step(
    history: list[Attempt], limits: Limits, blamed: list[str], restarts: int
) -> None:
    decision = decide(history, blamed=blamed, restarts=restarts, limits=limits)
    last = history[-limits.no_progress_starts :]
    harmless = {ExitCode.DONE, ExitCode.STOPPED}
    stuck = (
        len(last) == limits.no_progress_starts
        and len({attempt.step for attempt in last}) == 1
        and not harmless & {attempt.exit_code for attempt in last}
        # The next start goes without the nodes that failed their checks.
        and not any(attempt.exit_code is ExitCode.PREFLIGHT and attempt.blamed for attempt in last)
    )
    said = isinstance(decision, Stop) and decision.exit_code is ExitCode.NO_PROGRESS
    final = history[-1].exit_code
    assert said == (final is ExitCode.NO_PROGRESS or (stuck and (final is None or final in AGAIN)))


@given(histories, limits, node_names, st.integers(0, 30))
def test_only_blamed_nodes_are_left_out_each_once(
    history: list[Attempt], limits: Limits, blamed: list[str], restarts: int
) -> None:
    decision = decide(history, blamed=blamed, restarts=restarts, limits=limits)
    if isinstance(decision, Requeue):
        assert set(decision.exclude) <= set(blamed)
        assert len(set(decision.exclude)) == len(decision.exclude)
