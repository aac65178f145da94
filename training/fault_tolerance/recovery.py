"""What is done about a step whose loss or gradient is not as usual. Pure: the same history gives the same decision.

What is usual is the median of the last used steps of the training stage, how far from it is too far is measured in
median absolute deviations. Both shrug off outliers, and a step that was not used never enters the window: so one NaN
costs exactly one step, in warm-up too, where nothing is known yet about what is usual.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from training.checkpoint.manifest import LeftOut, Progress
from training.config.fault_tolerance_schema import SpikeAction
from training.config.schema import FaultToleranceConfig

_SIGMAS_PER_DEVIATION = 1.4826
"""Of a normal distribution: standard deviation over median absolute deviation."""
_SMALLEST_SIGMA = 0.01
"""Share of the median: on a flat stretch the deviation may be 0, and rounding is no spike."""


class Action(StrEnum):
    """What is done with a step. All but use are incidents."""

    use = "use"
    log = "log"
    skip = "skip"
    """No weight and no moment changes; the next batch comes."""
    roll_back = "roll_back"
    """Back to before the first spike; the batches since then are left out."""
    stop = "stop"


class Cause(StrEnum):
    """Why a step is not simply used; the name of its incident."""

    none = ""
    non_finite = "non_finite"
    loss_spike = "loss_spike"
    grad_norm_spike = "grad_norm_spike"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A decision and the sentence that explains it."""

    action: Action
    cause: Cause = Cause.none
    reason: str = ""

    @property
    def uses(self) -> bool:
        """Whether the step's update counts."""
        return self.action in (Action.use, Action.log)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What the decision about a step depends on besides the step; all of it is saved with every checkpoint."""

    losses: tuple[float, ...] = ()
    """Of the last used steps of the training stage, oldest first; all finite."""
    grad_norms: tuple[float, ...] = ()
    """Of the same steps."""
    spikes_in_a_row: int = 0
    skips_in_a_row: int = 0
    rollbacks: int = 0
    """Of the run."""


def history_of(progress: Progress | None, training_stage: str, left_out: Sequence[LeftOut]) -> History:
    """Return the history at a place of the run; another training stage knows nothing yet about what is usual."""
    if progress is None:
        return History(rollbacks=len(left_out))
    here = progress.training_stage == training_stage
    return History(
        losses=progress.losses if here else (),
        grad_norms=progress.grad_norms if here else (),
        spikes_in_a_row=progress.spikes_in_a_row if here else 0,
        skips_in_a_row=progress.skips_in_a_row,
        rollbacks=len(left_out),
    )


def decide(history: History, loss: float, grad_norm: float | None, limits: FaultToleranceConfig) -> Verdict:
    """Return what is done with a step.

    Args:
        history: of the steps before.
        loss: of the step.
        grad_norm: of the step; None before it is known: whether the update may be made is decided on the loss alone.
        limits: the run's.
    """
    if not math.isfinite(loss) or (grad_norm is not None and not math.isfinite(grad_norm)):
        return _bounded_skip(
            history,
            limits,
            Cause.non_finite,
            f"loss {loss:.6g}, gradient norm {'unknown' if grad_norm is None else f'{grad_norm:.6g}'}",
        )
    recovery = limits.recovery
    if recovery.on_loss_spike is not SpikeAction.none:
        unusual = _unusual(history.losses, loss, recovery.threshold_sigmas, recovery.min_steps)
        if unusual:
            return _about_spike(history, limits, f"loss {unusual}")
    if recovery.grad_norm_sigmas is not None and grad_norm is not None:
        unusual = _unusual(history.grad_norms, grad_norm, recovery.grad_norm_sigmas, recovery.min_steps)
        if unusual:
            return Verdict(action=Action.log, cause=Cause.grad_norm_spike, reason=f"gradient norm {unusual}")
    return Verdict(action=Action.use)


def after(history: History, verdict: Verdict, loss: float, grad_norm: float, limits: FaultToleranceConfig) -> History:
    """Return the history with a step in it: in its statistics only if the step was used."""
    spikes = history.spikes_in_a_row + 1 if verdict.cause is Cause.loss_spike else 0
    if not verdict.uses:
        return replace(history, spikes_in_a_row=spikes, skips_in_a_row=history.skips_in_a_row + 1)
    watches = limits.recovery.on_loss_spike is not SpikeAction.none or limits.recovery.grad_norm_sigmas is not None
    kept = limits.recovery.window_steps if watches else 0
    return replace(
        history,
        losses=_last((*history.losses, loss), kept),
        grad_norms=_last((*history.grad_norms, grad_norm), kept),
        spikes_in_a_row=spikes,
        skips_in_a_row=0,
    )


def window_to_leave_out(
    left_out: Sequence[LeftOut], training_stage: str, *, stage_step: int, spikes_in_a_row: int, rewind_steps: int
) -> tuple[int, LeftOut]:
    """Return how many steps of the training stage are left after going back, and the batches that are left out.

    Args:
        left_out: what was left out before.
        training_stage: its name.
        stage_step: steps of it before the spike that is acted upon.
        spikes_in_a_row: spikes without a break before that one.
        rewind_steps: steps before the first spike that go too.
    """
    kept_steps = max(0, stage_step - spikes_in_a_row - rewind_steps)
    first = batch_of(left_out, training_stage, kept_steps)
    end = batch_of(left_out, training_stage, stage_step) + 1
    return kept_steps, LeftOut(training_stage=training_stage, first_batch=first, num_batches=end - first)


def batch_of(left_out: Iterable[LeftOut], training_stage: str, stage_step: int) -> int:
    """Return the place of a step's batch in the training stage's order: the n-th one of those not left out."""
    batch = stage_step
    for first, end in _merged(left_out, training_stage):
        if first <= batch:
            batch += end - first
    return batch


def num_left_out(left_out: Iterable[LeftOut], training_stage: str) -> int:
    """Return how many batches of a training stage are left out."""
    return sum(end - first for first, end in _merged(left_out, training_stage))


def _merged(left_out: Iterable[LeftOut], training_stage: str) -> list[tuple[int, int]]:
    """Return the batches left out as ranges (first, end), in order and apart: a rewind may reach into another."""
    ranges: list[tuple[int, int]] = []
    mine = [window for window in left_out if window.training_stage == training_stage]
    for window in sorted(mine, key=lambda window: window.first_batch):
        first, end = window.first_batch, window.first_batch + window.num_batches
        if ranges and first <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((first, end))
    return ranges


def _about_spike(history: History, limits: FaultToleranceConfig, what: str) -> Verdict:
    recovery, number = limits.recovery, history.spikes_in_a_row + 1
    if recovery.on_loss_spike is SpikeAction.log or number < recovery.patience_steps:
        patience = f", spike {number} in a row" if number > 1 else ""
        return Verdict(action=Action.log, cause=Cause.loss_spike, reason=f"{what}{patience}: the step was used")
    if recovery.on_loss_spike is SpikeAction.skip:
        return _bounded_skip(history, limits, Cause.loss_spike, what)
    if history.rollbacks < recovery.max_rollbacks:
        return Verdict(action=Action.roll_back, cause=Cause.loss_spike, reason=what)
    return Verdict(
        action=Action.stop,
        cause=Cause.loss_spike,
        reason=f"{what}, and the run has gone back {history.rollbacks} times (fault_tolerance.recovery.max_rollbacks)",
    )


def _bounded_skip(history: History, limits: FaultToleranceConfig, cause: Cause, what: str) -> Verdict:
    is_last = history.skips_in_a_row + 1 >= limits.max_consecutive_skips
    return Verdict(action=Action.stop if is_last else Action.skip, cause=cause, reason=what)


def _unusual(window: Sequence[float], value: float, threshold: float, min_steps: int) -> str:
    """Return how far a value lies above the window's median if that is too far, else an empty text."""
    if len(window) < min_steps:
        return ""
    median = statistics.median(window)
    deviation = statistics.median([abs(other - median) for other in window])
    sigma = max(_SIGMAS_PER_DEVIATION * deviation, _SMALLEST_SIGMA * abs(median))
    if value - median <= threshold * sigma:
        return ""
    many = (value - median) / sigma if sigma else math.inf
    return f"{value:.6g} lies {many:.1f} robust sigmas above the median {median:.6g} of {len(window)} steps"


def _last(values: tuple[float, ...], number: int) -> tuple[float, ...]:
    return values[max(0, len(values) - number) :]
