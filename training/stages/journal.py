"""What the runner and its training loop write down: each event as a typed record of this start of the run."""

from collections.abc import Sequence

from training.checkpoint.manifest import Progress
from training.config.schema import RunConfig
from training.engine.base import StepResult
from training.models.sizes import training_flops_per_token
from training.reporting.records import EvalRecord, GateRecord, IncidentRecord, StageRecord, StepRecord
from training.reporting.reporter import Reporter


class Journal:
    """Hands records to a reporter, with the step, the training stage and the attempt they belong to.

    Args:
        peak_flops_per_second: of all ranks together, for MFU.
    """

    def __init__(self, config: RunConfig, reporter: Reporter, *, attempt: int, peak_flops_per_second: float) -> None:
        self._config = config
        self._reporter = reporter
        self._attempt = attempt
        self._peak = peak_flops_per_second
        self.progress: Progress | None = None
        """Of this start; None before the first step of the run. The training loop moves it on."""

    @property
    def steps_done(self) -> int:
        """Steps of the run so far."""
        return self.progress.step if self.progress else 0

    def step(self, result: StepResult, *, lr: float, batch: int, batch_id: str, seconds: float) -> None:
        """Write down the step that `progress` has just counted."""
        assert self.progress is not None
        stage = self._config.stages[self.progress.training_stage]
        layout = self._config.layout_of(self.progress.training_stage)
        flops = result.num_tokens * training_flops_per_token(self._config.model, stage.sequence_length)
        self._reporter.record(
            StepRecord(
                step=self.steps_done,
                stage=self.progress.training_stage,
                loss=result.loss,
                grad_norm=result.grad_norm,
                lr=lr,
                tokens=self.progress.tokens,
                tokens_per_second=result.num_tokens / seconds,
                mfu=flops / seconds / self._peak,
                batch_id=batch_id,
                batch=batch,
                preference=result.preference,
                attempt=self._attempt,
                seconds=seconds,
                skipped=result.skipped,
                bubble=result.bubble,
                later_loss=result.later_loss,
                experts=None if result.routing is None else result.routing.numbers(layout.expert),
            )
        )

    def incident(self, what: str, message: str) -> None:
        """Write down something that was not meant to happen, and what is done about it."""
        stage = self.progress.training_stage if self.progress else next(iter(self._config.stages))
        self._reporter.record(
            IncidentRecord(step=self.steps_done, stage=stage, what=what, message=message, attempt=self._attempt)
        )

    def stage(
        self,
        stage: str,
        event: str,
        layout: str = "",
        notes: Sequence[str] = (),
        peak_memory_bytes: float | None = None,
    ) -> None:
        """Write down that a training stage, or the run, begins or ends."""
        self._reporter.record(
            StageRecord(
                step=self.steps_done,
                stage=stage,
                event=event,
                layout=layout,
                attempt=self._attempt,
                notes=list(notes),
                peak_memory_bytes=peak_memory_bytes,
            )
        )

    def evaluation(
        self,
        stage: str,
        suite: str,
        *,
        metrics: dict[str, float],
        samples: list[dict[str, str]],
        seconds: float,
        report: str,
        in_between: bool,
    ) -> None:
        """Write down what an evaluation found; see `EvalRecord`."""
        self._reporter.record(
            EvalRecord(
                step=self.steps_done,
                stage=stage,
                suite=suite,
                bits_per_byte=metrics.get("bits_per_byte"),
                metrics=metrics,
                samples=samples,
                seconds=seconds,
                attempt=self._attempt,
                report=report,
                in_between=in_between,
            )
        )

    def gate(self, stage: str, decision: str, reasons: Sequence[str]) -> None:
        """Write down what a gate decided."""
        self._reporter.record(
            GateRecord(
                step=self.steps_done,
                stage=stage,
                decision=decision,
                reasons=list(reasons),
                attempt=self._attempt,
            )
        )
