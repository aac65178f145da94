"""The facade of reporting: training hands over a record once, and everyone who should know gets it."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from training.reporting.background import InBackground, Sink
from training.reporting.console import ConsoleView
from training.reporting.log_writer import LogWriter
from training.reporting.metrics import FILE_NAME
from training.reporting.records import Record
from training.reporting.wandb_view import OFFLINE_CLOSE_TIMEOUT_SECONDS, WandbView

_CONSOLE_CLOSE_SECONDS = 1.0
_TENSORBOARD_CLOSE_SECONDS = 10.0
_COMMIT_PATIENCE_SECONDS = 5.0
"""Longest time that a checkpoint's commit waits for the log, on the saving thread; training does not wait."""


class Reporter:
    """Hands each record to the metrics log first, then to the views. Use as a context manager, or call `close`."""

    def __init__(self, log: LogWriter | None = None, views: Sequence[Sink] = ()) -> None:
        self._log = log
        self._views = views

    @classmethod
    def open(
        cls,
        run_directory: Path,
        *,
        run_id: str,
        stages: Sequence[tuple[str, int]],
        wandb_mode: str,
        console_every_steps: int,
        attempt: int,
        tensorboard: bool = False,
    ) -> Self:
        """Return the reporter of rank 0.

        Args:
            run_directory: an existing run directory.
            run_id: identity of the run, the same after a requeue.
            stages: name and number of optimizer steps of each training stage, in order.
            wandb_mode: offline, online or disabled; the rest of it is read from the run's frozen config.yaml.
            console_every_steps: steps between lines where the output is not a terminal.
            attempt: how often the run directory was started before.
            tensorboard: whether to write TensorBoard's event files.

        Raises:
            StorageError: metrics.jsonl cannot be opened.
        """
        views: list[Sink] = []
        log = LogWriter(run_directory / FILE_NAME, tell=lambda record: _show(views, record))
        if wandb_mode != "disabled":
            views.append(
                InBackground(
                    "wandb",
                    lambda: WandbView(run_directory, mode=wandb_mode),
                    close_seconds=OFFLINE_CLOSE_TIMEOUT_SECONDS + 1,
                )
            )
        if tensorboard:
            views.append(
                InBackground(
                    "tensorboard", lambda: _tensorboard(run_directory), close_seconds=_TENSORBOARD_CLOSE_SECONDS
                )
            )
        views.append(
            InBackground(
                "console",
                lambda: ConsoleView(run_id=run_id, stages=stages, every_steps=console_every_steps, attempt=attempt),
                close_seconds=_CONSOLE_CLOSE_SECONDS,
            )
        )
        return cls(log, views)

    @classmethod
    def silent(cls) -> Self:
        """Return the reporter of the other ranks: it takes records and tells nobody."""
        return cls()

    def record(self, record: Record) -> None:
        """Hand over a record and go on: the caller waits for nothing longer than log_writer.PATIENCE_SECONDS.

        Raises:
            StorageError: metrics.jsonl could not be written for so long that memory would overflow.
        """
        if self._log is not None:
            self._log.append(record)
            _show(self._views, record)

    def before_commit(self) -> None:
        """Bring the records up to a checkpoint's step to disk before it is committed, for a few seconds if need be.

        A log that cannot be written holds up no checkpoint: losing steps is worse than losing their records.
        """
        if self._log is not None:
            self._log.flush(_COMMIT_PATIENCE_SECONDS)

    def close(self) -> None:
        """Finish the log, then the views, which read it. Returns within seconds whatever disk and wandb do.

        Raises:
            StorageError: the last records are not in metrics.jsonl.
        """
        with ExitStack() as stack:
            for view in self._views:
                stack.callback(view.close)
            if self._log is not None:
                self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _tensorboard(run_directory: Path) -> Sink:
    from training.reporting.tensorboard_view import TensorboardView  # a second to import, for those who want it

    return TensorboardView(run_directory)


def _show(views: Sequence[Sink], record: Record) -> None:
    for view in views:
        view.append(record)
