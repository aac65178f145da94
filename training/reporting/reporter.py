"""The facade of reporting: training hands over a record once, and everyone who should know gets it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from training.reporting.console import ConsoleView
from training.reporting.metrics import FILE_NAME, MetricsLog
from training.reporting.records import Record
from training.reporting.wandb_view import WandbView


class Sink(Protocol):
    """Something that takes records: the log or one of its views."""

    def append(self, record: Record) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Finish; no record comes after this."""
        ...


class Reporter:
    """Hands each record to the metrics log first, then to the views. Use as a context manager, or call `close`."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    @classmethod
    def open(
        cls,
        run_directory: Path,
        *,
        run_id: str,
        config: Mapping[str, Any],
        stages: Sequence[tuple[str, int]],
        wandb_mode: str,
        wandb_project: str,
        wandb_entity: str | None,
        console_every_steps: int,
        attempt: int,
    ) -> Self:
        """Return the reporter of rank 0.

        Args:
            run_directory: an existing run directory.
            run_id: identity of the run, the same after a requeue.
            config: the resolved config as plain values, for wandb.
            stages: name and number of optimizer steps of each training stage, in order.
            wandb_mode: offline, online or disabled.
            wandb_project: project name.
            wandb_entity: team or user; None takes the account's default.
            console_every_steps: steps between lines where the output is not a terminal.
            attempt: how often the run directory was started before.

        Raises:
            StorageError: metrics.jsonl cannot be written.
        """
        sinks: list[Sink] = [MetricsLog(run_directory / FILE_NAME)]
        if wandb_mode != "disabled":
            sinks.append(
                WandbView(
                    run_directory,
                    run_id=run_id,
                    config=config,
                    mode=wandb_mode,
                    project=wandb_project,
                    entity=wandb_entity,
                )
            )
        sinks.append(ConsoleView(run_id=run_id, stages=stages, every_steps=console_every_steps, attempt=attempt))
        return cls(sinks)

    @classmethod
    def silent(cls) -> Self:
        """Return the reporter of the other ranks: it takes records and tells nobody."""
        return cls([])

    def record(self, record: Record) -> None:
        """Hand over a record; it is in metrics.jsonl on return.

        Raises:
            StorageError: metrics.jsonl cannot be written.
        """
        for sink in self._sinks:
            sink.append(record)

    def close(self) -> None:
        """Finish the views, last opened first, then the log. Returns within seconds whatever wandb does."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
