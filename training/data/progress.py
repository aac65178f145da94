"""How far a preparation is: a bar on a terminal, else a line now and then."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

_LOG = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """Is told what is done; says so in the log every ten seconds."""

    def begin(self, what: str, total_bytes: int | None) -> None:
        """Start another part of the work; None where its size is not known before it is done."""
        self._what, self._total_bytes, self._num_bytes = what, total_bytes, 0
        self._begun = self._told = time.monotonic()

    def advance(self, num_bytes: int) -> None:
        """Count bytes of text that are done."""
        self._num_bytes += num_bytes
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            of_total = f" of {self._total_bytes / 1e6:,.1f}" if self._total_bytes is not None else ""
            rate = self._num_bytes / 1e6 / (now - self._begun)
            self.say(f"{self._what}: {self._num_bytes / 1e6:,.1f}{of_total} MB of text, {rate:.1f} MB/s")

    def say(self, sentence: str) -> None:
        """Tell something."""
        _LOG.info("%s", sentence)

    def close(self) -> None:
        """End the last part."""


class PrintingReporter(Reporter):
    """The same on a stream that is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, sentence: str) -> None:
        """Print it."""
        print(sentence, file=self._stream, flush=True)


class BarReporter(Reporter):
    """The same as a bar on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=Console(file=stream),
        )
        self._bars.start()

    def begin(self, what: str, total_bytes: int | None) -> None:
        """Add a bar."""
        self._bar = self._bars.add_task(what, total=total_bytes)

    def advance(self, num_bytes: int) -> None:
        """Move the newest bar."""
        self._bars.update(self._bar, advance=num_bytes)

    def say(self, sentence: str) -> None:
        """Print it above the bars."""
        self._bars.console.print(sentence, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bars as they are."""
        self._bars.stop()


@contextmanager
def reporter_on_stderr() -> Iterator[Reporter]:
    """Yield a reporter that writes to stderr, in the way that it can show."""
    reporter = BarReporter(sys.stderr) if sys.stderr.isatty() else PrintingReporter(sys.stderr)
    try:
        yield reporter
    finally:
        reporter.close()
