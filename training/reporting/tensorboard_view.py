"""TensorBoard as a view: the numbers of every record as scalars over steps, in RUN_DIR/tensorboard.

Names are those in wandb (wandb_rows). Steps that are done again after a crash or a rollback hide those before:
TensorBoard purges what an earlier event file holds from that step on (`purge_step`).
"""

import math
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from training.reporting.records import EvalRecord, Record, StepRecord
from training.reporting.wandb_rows import WandbRows

FOLDER = "tensorboard"

_FLUSH_SECONDS = 30
_NOT_DRAWN = ("counts/", "time/", "step", "tokens")
"""Sums over a whole run, which a view of one attempt does not know, and the axis."""


class TensorboardView:
    """Writes one event file per attempt, and per rollback; the first step record says where it begins."""

    def __init__(self, run_directory: Path) -> None:
        self._folder = run_directory / FOLDER
        self._writer: Any = None  # tensorboardX has no types
        self._rows = WandbRows()
        self._last_step = -1
        self._early: list[Record] = []
        """Records before the first step, which says what is purged."""

    def append(self, record: Record) -> None:
        """Write the numbers of one record."""
        if isinstance(record, StepRecord):
            if self._writer is None or record.step <= self._last_step:
                self._begin(record.step)
            self._last_step = record.step
        if self._writer is None:
            self._early.append(record)
        else:
            self._write(record)

    def close(self) -> None:
        """Bring everything to disk; what came before a first step that never came, too."""
        if self._writer is None and self._early:
            self._begin(None)
        if self._writer is not None:
            self._writer.close()

    def _begin(self, purge_step: int | None) -> None:
        if self._writer is not None:
            self._writer.close()
        # Files are named by the second and read in the order of their names.
        number = len(list(self._folder.glob("events.*")))
        self._writer = SummaryWriter(
            str(self._folder), purge_step=purge_step, flush_secs=_FLUSH_SECONDS, filename_suffix=f".{number:06d}"
        )
        self._rows = WandbRows()  # what is done again is drawn under its own name
        early, self._early = self._early, []
        for record in early:
            self._write(record)

    def _write(self, record: Record) -> None:
        for name, value in self._rows.row(record).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and not name.startswith(_NOT_DRAWN) and not (isinstance(value, float) and math.isinf(value)):
                self._writer.add_scalar(name, value, record.step)
        if isinstance(record, EvalRecord):
            for number, sample in enumerate(record.samples):
                text = f"    {sample['prompt']}…\n\n{sample['text']}"
                self._writer.add_text(f"samples/{record.suite}/{number}", text, record.step)
