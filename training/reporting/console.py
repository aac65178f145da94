"""Progress for the person who watches: two bars on a terminal, plain lines in a log file."""

import contextlib
import io
import os
import re
import statistics
import sys
from collections import Counter, deque
from collections.abc import Sequence
from typing import BinaryIO, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from training.reporting.event_lines import event_line, event_style
from training.reporting.formatting import count, duration, percent
from training.reporting.records import EventRecord, IncidentRecord, Record, StepRecord

_STEPS_OF_MEAN = 50
"""Steps whose mean time the remaining time is computed from."""
_TOLD_IN_FULL = 3
"""So many incidents of a kind are told in full; then the 10th, the 100th, …: metrics.jsonl has all."""
_REFRESHES_PER_SECOND = 4


class _OutliveReader(Console):
    """A console that falls silent when whoever reads it goes away (`| head`), instead of ending the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class ConsoleView:
    """Shows records on standard output. On a terminal step records only move the bars and the numbers below them."""

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
        self._told: Counter[tuple[str, str]] = Counter()
        self._console = console or _OutliveReader(file=_own_standard_output(), highlight=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, style="bold"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}", markup=False),
            TextColumn("{task.fields[left]}", markup=False, style="cyan"),
            console=self._console,
            expand=True,
        )
        self._stage_bar = self._bars.add_task("starting", total=None, left="")
        self._run_bar = self._bars.add_task("run", total=sum(self._num_steps.values()), left="")
        self._bars.update(self._run_bar, visible=len(self._names) > 1)
        self._numbers = Text("")
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=lambda: self.display,
                console=self._console,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
                # What others print to standard output is theirs; `redirect_stdout` is for the whole process.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._print(f"run {run_id}" + (f", attempt {attempt + 1}" if attempt else ""), "bold")

    @property
    def display(self) -> RenderableType:
        """Return what a terminal shows below the lines: the bars, and the numbers of the newest step."""
        return Group(self._bars, self._numbers)

    def append(self, record: Record) -> None:
        """Show one record."""
        if isinstance(record, StepRecord):
            self._show_step(record)
        elif isinstance(record, EventRecord):
            self._show_event(record)

    def close(self) -> None:
        """Take the bars away."""
        if self._live is not None:
            self._live.stop()

    def _show_step(self, record: StepRecord) -> None:
        if record.stage != self._timed_stage:  # another sequence length or layout takes another time
            self._timed_stage = record.stage
            self._step_seconds.clear()
        self._step_seconds.append(record.seconds)
        number = self._names.index(record.stage)
        total = self._num_steps[record.stage]
        stage_step = record.step - sum(self._num_steps[name] for name in self._names[:number])
        place = f"{number + 1}/{len(self._names)} {record.stage}"
        mean_seconds = statistics.fmean(self._step_seconds)
        stage_left = f"ETA {duration((total - stage_step) * mean_seconds)}"
        run_left = duration((sum(self._num_steps.values()) - record.step) * mean_seconds)
        if self._live is not None:
            self._bars.update(self._stage_bar, description=place, completed=stage_step, total=total, left=stage_left)
            self._bars.update(self._run_bar, completed=record.step, left=f"ETA {run_left}")
            self._numbers = Text.assemble(
                _numbers(record), "  ", _more_numbers(record), no_wrap=True, overflow="ellipsis"
            )
        elif record.step % self._every_steps == 0 or stage_step in (1, total) or record.skipped:
            left = stage_left if len(self._names) == 1 else f"{stage_left}, run {run_left}"
            self._print(
                f"[{place}] step {stage_step}/{total}  {_numbers(record)}  {_more_numbers(record)}  {left}"
                + ("  SKIPPED" if record.skipped else "")
            )

    def _show_event(self, record: EventRecord) -> None:
        if isinstance(record, IncidentRecord):
            alike = (record.what, re.sub(r"\d+", "", record.message))
            self._told[alike] += 1
            times = self._told[alike]
            if times > _TOLD_IN_FULL:
                if str(times).strip("0") == "1":
                    self._print(f"[{record.stage}] INCIDENT {record.what} for the {times}th time", event_style(record))
                return
        self._print(event_line(record), event_style(record))

    def _print(self, line: str, style: str = "") -> None:
        with contextlib.suppress(OSError):  # a full disk under `> file`: the line is lost, the next one is tried
            self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


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


def _more_numbers(record: StepRecord) -> str:
    numbers = f"grad {record.grad_norm:.3g}  lr {record.lr:.2e}"
    if record.data_seconds is not None and record.data_seconds > 0.01 * record.seconds:
        numbers += f"  data wait {percent(record.data_seconds / record.seconds)}"
    return numbers
