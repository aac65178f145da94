"""The recovery policy: what is a spike, what is done about it, and which batches come after it."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.checkpoint.manifest import LeftOut
from training.config.fault_tolerance_schema import RecoveryConfig, SpikeAction
from training.config.schema import FaultToleranceConfig
from training.fault_tolerance.recovery import (
    Action,
    Cause,
    History,
    Verdict,
    after,
    batch_of,
    decide,
    num_left_out,
    window_to_leave_out,
)

LOSSES = st.floats(0.5, 12.0)
STEPS = st.lists(st.one_of(LOSSES, st.sampled_from([math.nan, math.inf, 1e4])), max_size=80)


def limits(
    action: SpikeAction = SpikeAction.skip, *, max_consecutive_skips: int = 10**6, **recovery: object
) -> FaultToleranceConfig:
    settings = RecoveryConfig(on_loss_spike=action, window_steps=16, min_steps=8)
    return FaultToleranceConfig(
        max_consecutive_skips=max_consecutive_skips,
        recovery=replace(settings, **recovery),  # type: ignore[arg-type]
    )


def run(
    losses: list[float], settings: FaultToleranceConfig, history: History | None = None
) -> tuple[list[Verdict], History]:
    history, verdicts = history or History(), []
    for loss in losses:
        verdicts.append(decide(history, loss, loss, settings))
        history = after(history, verdicts[-1], loss, loss, settings)
    return verdicts, history


@pytest.mark.parametrize("before", [0, 3, 200])
def test_one_nan_costs_exactly_one_step_in_warm_up_too(before: int) -> None:
    losses = [3.0 + 0.01 * (step % 3) for step in range(before)]
    verdicts, _ = run([*losses, math.nan, *losses], limits())
    assert [v.action for v in verdicts] == [Action.use] * before + [Action.skip] + [Action.use] * before
    assert verdicts[before].cause is Cause.non_finite


@given(STEPS)
def test_what_was_not_used_is_never_in_the_statistics(losses: list[float]) -> None:
    settings = limits()
    verdicts, history = run(losses, settings)
    used = [loss for loss, verdict in zip(losses, verdicts, strict=True) if verdict.uses]
    assert list(history.losses) == used[-16:]
    assert all(map(math.isfinite, (*history.losses, *history.grad_norms)))


@given(STEPS, st.lists(st.integers(0, 80), max_size=4), st.sampled_from(list(SpikeAction)))
def test_a_run_that_was_interrupted_decides_the_same(losses: list[float], cuts: list[int], action: SpikeAction) -> None:
    settings = limits(action)
    whole, _ = run(losses, settings)
    pieces, history, done = [], History(), 0
    for cut in [*sorted(min(cut, len(losses)) for cut in cuts), len(losses)]:
        verdicts, history = run(losses[done:cut], settings, history)
        pieces, done = [*pieces, *verdicts], cut
    assert pieces == whole


@given(STEPS, st.integers(1, 4))
def test_skips_in_a_row_are_bounded(losses: list[float], most: int) -> None:
    verdicts, _ = run(losses, limits(max_consecutive_skips=most))
    in_a_row = 0
    for verdict in verdicts:
        in_a_row = 0 if verdict.uses else in_a_row + 1
        if verdict.action is Action.stop:
            return
        assert in_a_row < most


@given(st.lists(LOSSES, min_size=8, max_size=16), st.floats(1e-3, 1e3), st.floats(0, 50))
def test_the_unit_of_the_loss_does_not_matter_and_a_fall_is_no_spike(
    window: list[float], unit: float, loss: float
) -> None:
    settings = limits()
    history = History(losses=tuple(window), grad_norms=tuple(window))
    scaled = History(losses=tuple(unit * value for value in window), grad_norms=tuple(window))
    median = sorted(window)[len(window) // 2]
    near = decide(history, loss, 1.0, settings)
    threshold_apart = abs(loss - median) > 1e-6  # else rounding decides
    if threshold_apart and near.action is not decide(scaled, loss * unit, 1.0, settings).action:
        sigma = max(1.4826 * _deviation(window), 0.01 * _median(window))
        assert abs(loss - _median(window) - 6.0 * sigma) < 1e-9 * max(1.0, loss)
    assert decide(history, min(window), 1.0, settings).action is Action.use


def _median(values: list[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _deviation(values: list[float]) -> float:
    return _median([abs(value - _median(values)) for value in values])


def test_what_is_done_about_a_spike_is_what_was_asked_for() -> None:
    calm = [3.0 + 0.01 * (step % 3) for step in range(20)]
    expected = {
        SpikeAction.none: Action.use,
        SpikeAction.log: Action.log,
        SpikeAction.skip: Action.skip,
        SpikeAction.rollback: Action.roll_back,
    }
    for action, done in expected.items():
        assert run([*calm, 30.0], limits(action))[0][-1].action is done


def test_patience_uses_and_writes_down_the_first_spikes() -> None:
    calm = [3.0] * 10
    verdicts, _ = run([*calm, 9.0, 9.0, 9.0, 3.0, 9.0], limits(SpikeAction.rollback, patience_steps=3))
    assert [v.action for v in verdicts[10:]] == [Action.log, Action.log, Action.roll_back, Action.use, Action.log]


def test_a_lasting_new_level_becomes_the_usual_one() -> None:
    verdicts, _ = run([*[3.0] * 20, *[4.0] * 40], limits(SpikeAction.log))
    assert [v.action for v in verdicts[20:22]] == [Action.log] * 2
    assert {v.action for v in verdicts[-25:]} == {Action.use}


def test_too_many_rollbacks_stop_the_run() -> None:
    history = History(losses=(3.0,) * 10, grad_norms=(1.0,) * 10, rollbacks=3)
    assert decide(history, 30.0, 1.0, limits(SpikeAction.rollback, max_rollbacks=4)).action is Action.roll_back
    assert decide(history, 30.0, 1.0, limits(SpikeAction.rollback, max_rollbacks=3)).action is Action.stop


def test_a_large_gradient_is_only_written_down_and_only_if_asked_for() -> None:
    history = History(losses=(3.0,) * 10, grad_norms=(1.0,) * 10)
    assert decide(history, 3.0, 50.0, limits()).action is Action.use
    verdict = decide(history, 3.0, 50.0, limits(grad_norm_sigmas=6.0))
    assert (verdict.action, verdict.cause) == (Action.log, Cause.grad_norm_spike)


def test_the_decision_before_the_update_is_the_one_after_it() -> None:
    history = History(losses=(3.0,) * 10, grad_norms=(1.0,) * 10)
    for loss in (2.9, 3.1, 30.0):
        assert decide(history, loss, None, limits()) == decide(history, loss, 1.0, limits())


WINDOWS = st.lists(
    st.builds(LeftOut, training_stage=st.just("s"), first_batch=st.integers(0, 40), num_batches=st.integers(1, 9)),
    max_size=5,
)


@given(WINDOWS, st.integers(0, 60))
def test_steps_draw_the_batches_that_are_not_left_out_in_order(windows: list[LeftOut], num_steps: int) -> None:
    gone = {batch for w in windows for batch in range(w.first_batch, w.first_batch + w.num_batches)}
    elsewhere = LeftOut(training_stage="other", first_batch=0, num_batches=5)
    drawn = [batch_of([*windows, elsewhere], "s", step) for step in range(num_steps)]
    assert drawn == [batch for batch in range(200) if batch not in gone][:num_steps]
    assert num_left_out(windows, "s") == len(gone)


@given(WINDOWS, st.integers(0, 40), st.integers(0, 5), st.integers(0, 9))
def test_going_back_leaves_out_every_batch_since_and_none_before(
    windows: list[LeftOut], stage_step: int, spikes: int, rewind: int
) -> None:
    before = [batch_of(windows, "s", step) for step in range(stage_step + 1)]
    kept, window = window_to_leave_out(windows, "s", stage_step=stage_step, spikes_in_a_row=spikes, rewind_steps=rewind)
    assert kept == max(0, stage_step - spikes - rewind)
    now = [batch_of([*windows, window], "s", step) for step in range(stage_step + 1)]
    assert now[:kept] == before[:kept], "steps that stay would be done with other data"
    assert not set(now) & set(before[kept:])
