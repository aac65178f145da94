"""A run that goes on, as the server shows it: its log is read on from where it was read to, never anew."""

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from training.reporting.metrics import Metrics, MetricsReader
from training.reporting.records import Record
from training.reporting.report.page import Content, run_content, whole_page
from training.reporting.report.traces import trace_paths
from training.reporting.summary import metrics_path, summarize

_REST = 10
"""How many times as long as drawing took the next drawing is put off: a long run's is not paid for by its training."""
_WATCHED = ("metrics.jsonl", "stages.json", "attempts.jsonl", "plan.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    stamp: str
    content: Content
    traces: set[str]


class LiveRun:
    """What a run directory holds now; any number of threads may ask.

    Args:
        directory: of the run.

    Raises:
        ConfigError: the directory holds no metrics.jsonl.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = metrics_path(directory)
        self._lock = threading.Lock()
        self._shown: _Shown | None = None
        self._rests_until_seconds = 0.0
        self._read_from_the_start()

    def stamp(self) -> str:
        """Return a word that changes when the run has something new to show."""
        shown = self._shown
        if shown is not None and time.monotonic() < self._rests_until_seconds:
            return shown.stamp
        return "-".join(_stamp(self.directory / name) for name in _WATCHED)

    def page(self) -> str:
        """Return the whole page, which then asks for `content_json`."""
        shown = self._newest()
        return whole_page(shown.content, live_stamp=shown.stamp)

    def content_json(self) -> str:
        """Return what changes in the page, as JSON: stamp, title, body and figures."""
        shown = self._newest()
        content = shown.content
        head = json.dumps({"stamp": shown.stamp, "title": content.title, "body": content.body})
        return f'{head[:-1]}, "figures": {content.figures}}}'

    def traces(self) -> set[str]:
        """Return the paths in the run directory that may be handed out."""
        return self._newest().traces

    def _newest(self) -> _Shown:
        with self._lock:  # one thread reads and draws, the others wait for what it found
            stamp = self.stamp()
            if self._shown is None or self._shown.stamp != stamp:
                begin_seconds = time.monotonic()
                summary = summarize(self.directory, self._metrics())
                self._shown = _Shown(
                    stamp=stamp,
                    content=run_content(self.directory, summary, live=True),
                    traces=trace_paths(summary.profiles),
                )
                end_seconds = time.monotonic()
                self._rests_until_seconds = end_seconds + _REST * (end_seconds - begin_seconds)
            return self._shown

    def _metrics(self) -> Metrics:
        if self._path.stat().st_size < self._reader.offset_bytes:  # another run began in this directory
            self._read_from_the_start()
        before = -1
        while before != self._reader.offset_bytes:  # it reads a part at a time
            before = self._reader.offset_bytes
            new = self._reader.read_new()
            self._records += new.records
            self._times_seconds += new.times_seconds
            self._line_numbers += new.line_numbers
            self._num_torn_lines += new.num_torn_lines
        return Metrics(
            records=self._records,
            times_seconds=self._times_seconds,
            line_numbers=self._line_numbers,
            num_torn_lines=self._num_torn_lines,
        )

    def _read_from_the_start(self) -> None:
        self._reader = MetricsReader(self._path)
        self._records: list[Record] = []
        self._times_seconds: list[float] = []
        self._line_numbers: list[int] = []
        self._num_torn_lines = 0


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except FileNotFoundError:
        return "0"
    return f"{status.st_size:x}.{status.st_mtime_ns:x}"
