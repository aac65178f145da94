"""What the training loop asks about unusual steps: the policy with its state, which every checkpoint carries."""

from dataclasses import replace

from training.checkpoint.manifest import LeftOut, Progress
from training.config.fault_tolerance_schema import SpikeAction
from training.config.schema import FaultToleranceConfig, RunConfig
from training.engine.base import StepResult
from training.errors import LossSpike, NonFiniteGradients
from training.fault_tolerance.recovery import (
    Action,
    Cause,
    Verdict,
    after,
    batch_of,
    decide,
    history_of,
    num_left_out,
    window_to_leave_out,
)


class Recovery:
    """Decides alike on every rank, from numbers that are equal on all.

    Its state is `Progress`'s: `losses`, `grad_norms`, `spikes_in_a_row`, `skips_in_a_row` and `left_out`. What has just
    been left out is kept here until a checkpoint carries it; a run that is killed before that goes on from the same
    checkpoint, meets the same spike and decides the same.
    """

    def __init__(self, limits: FaultToleranceConfig, skipped: tuple[LeftOut, ...] = ()) -> None:
        """Build it.

        Args:
            limits: the run's.
            skipped: batches that the config leaves out, whatever happens.
        """
        self._limits = limits
        self._skipped = skipped
        self._left_out: tuple[LeftOut, ...] = ()

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What is left out, of all training stages."""
        return self._left_out

    @property
    def holds_back(self) -> bool:
        """Whether `accepts` has to be asked before an update."""
        return self._limits.recovery.on_loss_spike is SpikeAction.skip

    def resume(self, progress: Progress | None) -> None:
        """Go on from where a checkpoint was made, or from the start of the run."""
        self._left_out = progress.left_out if progress else ()

    def batches_left_out(self, training_stage: str) -> int:
        """Return how many of a training stage's batches are left out."""
        return num_left_out((*self._left_out, *self._skipped), training_stage)

    def batch_of(self, training_stage: str, stage_step: int) -> int:
        """Return the place of a step's batch in the training stage's order."""
        return batch_of((*self._left_out, *self._skipped), training_stage, stage_step)

    def accepts(self, progress: Progress | None, training_stage: str, loss: float) -> bool:
        """Return whether the step after `progress` may be used, by its loss alone."""
        return decide(history_of(progress, training_stage, self._left_out), loss, None, self._limits).uses

    def judge(self, progress: Progress | None, training_stage: str, result: StepResult) -> Verdict:
        """Return what is done with the step after `progress`."""
        history = history_of(progress, training_stage, self._left_out)
        return decide(history, result.loss, result.grad_norm, self._limits)

    def counted(self, progress: Progress | None, moved_on: Progress, result: StepResult, verdict: Verdict) -> Progress:
        """Return `moved_on`, the progress after a step, with the fields in it that are this class's.

        Args:
            progress: before the step.
            moved_on: after it.
            result: of the step.
            verdict: about it.
        """
        history = history_of(progress, moved_on.training_stage, self._left_out)
        history = after(history, verdict, result.loss, result.grad_norm, self._limits)
        return replace(
            moved_on,
            losses=history.losses,
            grad_norms=history.grad_norms,
            spikes_in_a_row=history.spikes_in_a_row,
            skips_in_a_row=history.skips_in_a_row,
            left_out=self._left_out,
        )

    def go_back(self, progress: Progress | None, training_stage: str, stage_step: int) -> tuple[int, LeftOut]:
        """Leave the batches of a spike out from now on.

        Args:
            progress: before the step that is acted upon.
            training_stage: its name.
            stage_step: steps of it before that one.

        Returns:
            how many of the training stage's steps stay; the batches that are left out.
        """
        history = history_of(progress, training_stage, self._left_out)
        kept_steps, window = window_to_leave_out(
            (*self._left_out, *self._skipped),
            training_stage,
            stage_step=stage_step,
            spikes_in_a_row=history.spikes_in_a_row,
            rewind_steps=self._limits.recovery.rewind_steps,
        )
        self._left_out = (*self._left_out, window)
        return kept_steps, window


def skipped_batches(config: RunConfig) -> tuple[LeftOut, ...]:
    """Return the batches that a config leaves out of its training stages."""
    return tuple(
        LeftOut(training_stage=name, first_batch=window.first_batch, num_batches=window.num_batches)
        for name, stage in config.stages.items()
        for window in stage.skip_batches
    )


def raise_if_stopped(verdict: Verdict, *, step: int, skips_in_a_row: int) -> None:
    """Do nothing unless the verdict ends the run.

    Raises:
        NonFiniteGradients: too many steps in a row could not be used, the last one because it was not finite.
        LossSpike: the same because of its loss, or the run went back too often.
    """
    if verdict.action is not Action.stop:
        return
    if verdict.cause is Cause.non_finite:
        raise NonFiniteGradients(
            f"{skips_in_a_row} steps in a row had NaN or Inf gradients, the last one step {step}\n"
            "  -> no weight was changed by them; lower the learning rate or look at the data of these steps"
        )
    raise LossSpike(
        f"step {step}: {verdict.reason}; {skips_in_a_row} steps in a row were not used\n"
        "  -> nothing of this step is saved; look at the batches of these steps and at the learning rate, or change "
        "fault_tolerance.recovery (resume.allow=[fault_tolerance.recovery])"
    )
