"""Progress for the person who watches: one live line on a terminal, plain lines in a log file."""

import contextlib
import io
import os
import statistics
import sys
from collections import deque
from collections.abc import Sequence
from typing import BinaryIO, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from training.reporting.formatting import count, duration, num_bytes, percent
from training.reporting.records import (
    CheckpointRecord,
    EvalRecord,
    EventRecord,
    GateRecord,
    IncidentRecord,
    Record,
    StageRecord,
    StepRecord,
)

_STEPS_OF_MEAN = 50
"""Steps whose mean time the remaining time is computed from."""


class _OutliveReader(Console):
    """A console that falls silent when whoever reads it goes away (`| head`), instead of ending the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class ConsoleView:
    """Shows records on standard output. On a terminal step records only move the live line."""

    def __init__(
        self,
        *,
        run_id: str,
        stages: Sequence[tuple[str, int]],
        every_steps: int,
        attempt: int,
        console: Console | None = None,
    ) -> None:
        self._names = [name for name, _ in stages]
        self._num_steps = dict(stages)
        self._every_steps = every_steps
        self._step_seconds: deque[float] = deque(maxlen=_STEPS_OF_MEAN)
        self._timed_stage = ""
        self._console = console or _OutliveReader(file=_own_standard_output(), highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}  {task.fields[status]}", markup=False),
            console=self._console,
            transient=True,
            expand=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=sum(self._num_steps.values()), status="")
        self._progress.start()
        self._print(f"run {run_id}" + (f", attempt {attempt + 1}" if attempt else ""))

    def append(self, record: Record) -> None:
        """Show one record."""
        if isinstance(record, StepRecord):
            self._show_step(record)
        elif isinstance(record, EventRecord):
            self._print(_event_line(record))

    def close(self) -> None:
        """Take the live line away."""
        self._progress.stop()

    def _show_step(self, record: StepRecord) -> None:
        if record.stage != self._timed_stage:  # another sequence length or layout takes another time
            self._timed_stage = record.stage
            self._step_seconds.clear()
        self._step_seconds.append(record.seconds)
        number = self._names.index(record.stage)
        stage_step = record.step - sum(self._num_steps[name] for name in self._names[:number])
        place = f"{number + 1}/{len(self._names)} {record.stage}"
        left = self._time_left(record, self._num_steps[record.stage] - stage_step)
        if self._console.is_terminal:
            status = f"{_numbers(record)}  {left}"
            self._progress.update(
                self._task,
                description=place,
                completed=stage_step,
                total=self._num_steps[record.stage],
                status=status,
            )
        elif record.step % self._every_steps == 0 or stage_step in (1, self._num_steps[record.stage]) or record.skipped:
            self._print(
                f"[{place}] step {stage_step}/{self._num_steps[record.stage]}  {_numbers(record)}  "
                f"grad {record.grad_norm:.3g}  lr {record.lr:.2e}  {left}" + ("  SKIPPED" if record.skipped else "")
            )

    def _time_left(self, record: StepRecord, stage_steps_left: int) -> str:
        run_steps_left = sum(self._num_steps.values()) - record.step
        mean_seconds = statistics.fmean(self._step_seconds)
        left = f"ETA {duration(stage_steps_left * mean_seconds)}"
        return left if len(self._names) == 1 else f"{left}, run {duration(run_steps_left * mean_seconds)}"

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a full disk under `> file`: the line is lost, the next one is tried
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _own_standard_output() -> TextIO:
    """Return standard output as a stream of our own, which keeps nothing in a buffer.

    While it waits for a slow reader it holds no lock of `sys.stdout`, which others print to and the process flushes at
    its end; and `redirect_stdout`, which is for the whole process, does not reach it.
    """
    if sys.stdout is None:  # the process was started without one
        return io.StringIO()
    raw = os.fdopen(os.dup(1), "wb", buffering=0)
    return io.TextIOWrapper(cast(BinaryIO, raw), encoding="utf-8", errors="replace", write_through=True)


def _numbers(record: StepRecord) -> str:
    return f"loss {record.loss:.4f}  {count(record.tokens_per_second)} tok/s  MFU {percent(record.mfu)}"


_VERDICTS = {"promote": "PROMOTED", "block": "BLOCKED", "ask": "ASKS A PERSON", "more_items": "WANTS MORE ITEMS"}


def _event_line(record: EventRecord) -> str:
    match record:
        case EvalRecord():
            bits = [] if record.bits_per_byte is None else [f"{record.bits_per_byte:.4f} bits per byte"]
            others = [f"{n} {v:.4g}" for n, v in record.metrics.items() if n != "bits_per_byte"]
            numbers = "  ".join([*bits, *others])
            return f"[{record.stage}] eval {record.suite}: {numbers}  ({duration(record.seconds)})"
        case GateRecord():
            reasons = "".join(f"\n    {reason}" for reason in record.reasons)
            verdict = _VERDICTS.get(record.decision, record.decision)
            return f"[{record.stage}] gate: {verdict}{reasons}"
        case CheckpointRecord():
            size = num_bytes(record.num_bytes)
            times = f"{duration(record.seconds)}, training stood still for {1000 * record.stall_seconds:.0f} ms"
            return f"[{record.stage}] checkpoint {record.directory}: {size} in {times}"
        case IncidentRecord():
            return f"[{record.stage}] INCIDENT {record.what} at step {record.step}: {record.message}"
        case StageRecord(stage="run"):
            return f"run {record.event} at step {record.step}"
        case StageRecord():
            notes = "".join(f"\n    {note}" for note in record.notes)
            return f"[{record.stage}] {record.event}: {record.layout}{notes}"
