"""What the runner and its training loop write down: each event as a typed record of this start of the run."""

from collections.abc import Sequence
from typing import Any

from training.checkpoint.manifest import Progress
from training.config.schema import RunConfig
from training.engine.base import LayerNorms, StepResult
from training.engine.global_gradient import CLIP_EPSILON
from training.fault_tolerance.heartbeat import OTHER, Heartbeat, Section
from training.models.sizes import recomputed_flops_per_token, training_flops_per_token
from training.reporting.records import (
    EvalRecord,
    ExpertsRecord,
    GateRecord,
    IncidentRecord,
    LayersRecord,
    MemoryRecord,
    ProfileRecord,
    StageRecord,
    StartRecord,
    StepRecord,
    TimeRecord,
)
from training.reporting.reporter import Reporter


class Journal:
    """Hands records to a reporter, with the step, the training stage and the attempt they belong to.

    Args:
        config: the run.
        reporter: takes the records.
        heartbeat: of this rank, whose books say where its time went.
        start: of this attempt; the first record.
    """

    def __init__(self, config: RunConfig, reporter: Reporter, *, heartbeat: Heartbeat, start: StartRecord) -> None:
        self._config = config
        self._reporter = reporter
        self._heartbeat = heartbeat
        self._attempt = start.attempt
        self._world_size = start.world_size
        self._peak = start.world_size * start.peak_flops_per_second
        reporter.record(start)
        self.progress: Progress | None = None
        """Of this start; None before the first step of the run. The training loop moves it on."""

    @property
    def steps_done(self) -> int:
        """Steps of the run so far."""
        return self.progress.step if self.progress else 0

    def step(
        self, result: StepResult, *, lr: float, batch: int, batch_id: str, seconds: float, waited_seconds: float
    ) -> None:
        """Write down the step that `progress` has just counted.

        Args:
            result: of the engine.
            lr: learning rate it used.
            batch: place of its global batch in the training stage's order.
            batch_id: hash of that batch's sample ids.
            seconds: wall time, its data too.
            waited_seconds: of it, what this rank waited in collectives.
        """
        assert self.progress is not None
        model, name = self._config.model, self.progress.training_stage
        stage, layout = self._config.stages[name], self._config.layout_of(name)
        flops = result.num_tokens * training_flops_per_token(model, stage.sequence_length)
        again = result.num_tokens * recomputed_flops_per_token(model, stage.sequence_length, layout.recompute)
        spent = self._heartbeat.take_spent()
        of_step = {section: spent.pop(section, 0.0) for section in (Section.data, Section.step, OTHER)}
        self._write_spent(spent)
        self._reporter.record(
            StepRecord(
                step=self.steps_done,
                stage=self.progress.training_stage,
                loss=result.loss,
                grad_norm=result.grad_norm,
                clipped_grad_norm=None if result.skipped else self._clipped(result.grad_norm),
                lr=lr,
                tokens=self.progress.tokens,
                tokens_per_second=result.num_tokens / seconds,
                tokens_per_second_per_device=result.num_tokens / seconds / self._world_size,
                mfu=flops / seconds / self._peak,
                hfu=(flops + again) / seconds / self._peak,
                batch_id=batch_id,
                batch=batch,
                preference=result.preference,
                attempt=self._attempt,
                seconds=seconds,
                data_seconds=of_step[Section.data],
                waited_seconds=waited_seconds,
                other_seconds=of_step[OTHER],
                skipped=result.skipped,
                bubble=result.bubble,
                later_loss=result.later_loss,
                experts=None if result.routing is None else result.routing.numbers(layout.expert),
            )
        )

    def layers(self, norms: LayerNorms) -> None:
        """Write down how each layer learned in the last step."""
        self._reporter.record(
            LayersRecord(
                step=self.steps_done,
                stage=self._stage,
                attempt=self._attempt,
                names=list(norms.names),
                weight_norms=list(norms.weight_norms),
                grad_norms=list(norms.grad_norms),
                update_norms=list(norms.update_norms),
            )
        )

    def experts(self, loads: Sequence[Sequence[int]]) -> None:
        """Write down how many tokens of the last step each expert of each block got."""
        record = ExpertsRecord(
            step=self.steps_done, stage=self._stage, attempt=self._attempt, loads=[list(block) for block in loads]
        )
        self._reporter.record(record)

    def memory(
        self,
        *,
        host_bytes: float,
        host_rank: int,
        device_bytes: float | None,
        device_rank: int | None,
        held_bytes: dict[str, int],
    ) -> None:
        """Write down how much memory ranks use after the last step; see `MemoryRecord`."""
        self._reporter.record(
            MemoryRecord(
                step=self.steps_done,
                stage=self._stage,
                attempt=self._attempt,
                host_bytes=host_bytes,
                host_rank=host_rank,
                device_bytes=device_bytes,
                device_rank=device_rank,
                held_bytes=held_bytes,
            )
        )

    def profile(
        self,
        *,
        first_step: int,
        rank: int,
        trace: str,
        memory: str | None,
        operators: list[dict[str, Any]],
    ) -> None:
        """Write down a profile that ends with the last step; see `ProfileRecord`."""
        self._reporter.record(
            ProfileRecord(
                step=self.steps_done,
                stage=self._stage,
                attempt=self._attempt,
                first_step=first_step,
                rank=rank,
                trace=trace,
                memory=memory,
                operators=operators,
            )
        )

    def incident(self, what: str, message: str) -> None:
        """Write down something that was not meant to happen, and what is done about it."""
        self._reporter.record(
            IncidentRecord(step=self.steps_done, stage=self._stage, what=what, message=message, attempt=self._attempt)
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
        self.book()
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
        self.book()
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

    def _clipped(self, norm: float) -> float:
        """Return the norm of a gradient of this norm after clipping, as engine/global_gradient.py and torch do it."""
        limit = self._config.optimizer.gradient_clip_norm
        return norm * min(1.0, limit / (norm + CLIP_EPSILON)) if limit > 0 else norm

    def book(self) -> None:
        """Write down where the time went since it was last written down, that of a step that came to naught too."""
        self._write_spent(self._heartbeat.take_spent())

    def _write_spent(self, spent: dict[str, float]) -> None:
        if spent:
            self._reporter.record(
                TimeRecord(step=self.steps_done, stage=self._stage, attempt=self._attempt, spent=spent)
            )

    @property
    def _stage(self) -> str:
        return self.progress.training_stage if self.progress else next(iter(self._config.stages))
