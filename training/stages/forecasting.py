"""Watches the loss of one training stage against its forecast; rank 0 alone, from what metrics.jsonl has on."""

from pathlib import Path

from training.config.schema import RunConfig
from training.engine.base import StepResult
from training.reporting.forecast import WINDOW_STEPS, LossWatch
from training.reporting.metrics import FILE_NAME, last_steps
from training.stages.journal import Journal


class Forecasting:
    """Takes each step after the journal has written it down, and writes an incident if the loss has left its band.

    Args:
        config: the run.
        run_directory: has metrics.jsonl, whose steps of this training stage up to now are taken first.
        name: the training stage.
        journal: knows the step.
        is_first: whether this is rank 0; on the others it does nothing.
    """

    def __init__(self, config: RunConfig, run_directory: Path, name: str, *, journal: Journal, is_first: bool) -> None:
        self._journal = journal
        self._tokens_before = tokens_before(config, name)
        settings = config.reporting.forecast
        self._watch: LossWatch | None = None
        if settings.every_steps == 0 or not is_first:
            return
        self._watch = LossWatch(
            every_steps=settings.every_steps,
            min_steps=settings.min_steps,
            sigmas=settings.sigmas,
            patience_steps=settings.patience_steps,
            new_data_steps=new_data_steps(config, name),
        )
        first, done = config.first_step(name), journal.steps_done
        for step in last_steps(run_directory / FILE_NAME, name, range(first + 1, done + 1), most=WINDOW_STEPS):
            self._take(step.step, step.tokens, step.loss, step.lr)  # what an earlier start has told is not told again

    def after_step(self, result: StepResult, *, lr: float) -> None:
        """Take the step that the journal has just written down; a step that changed nothing counts too."""
        if self._watch is not None:
            assert self._journal.progress is not None
            if told := self._take(self._journal.steps_done, self._journal.progress.tokens, result.loss, lr):
                self._journal.incident("loss_off_forecast", told)

    def _take(self, step: int, tokens: int, loss: float, lr: float) -> str | None:
        assert self._watch is not None
        return self._watch.observe(step, tokens=tokens - self._tokens_before, loss=loss, lr=lr)


def tokens_before(config: RunConfig, name: str) -> int:
    """Return the tokens of the run at which a training stage begins."""
    names = list(config.stages)
    return sum(config.num_tokens(earlier) for earlier in names[: names.index(name)])


def new_data_steps(config: RunConfig, name: str) -> list[int]:
    """Return the steps of the run that are the first with another mixture than the step before."""
    sizes, first, num_steps = config.batch_sizes(name), config.first_step(name), config.num_steps(name)
    num_samples = sizes.samples_before(num_steps)
    found: list[int] = []
    for change in config.stages[name].mixture_changes:
        last_old = sizes.num_batches(round(change.from_fraction * num_samples) * sizes.sequence_length)
        found += [first + last_old, first + last_old + 1]  # the batch in which it changes may have some of both
    return found
