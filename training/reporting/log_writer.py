"""The metrics log on a thread of its own: the disk may be slow, full or away, training goes on.

What is handed over is kept in memory until it is in metrics.jsonl, so nothing is lost as long as the process lives or
ends in order. A kill costs the records that the thread had not yet written, on a healthy disk those of the last
milliseconds; the steps that a checkpoint holds are written before it is committed (`flush`).
"""

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from training.errors import StorageError
from training.reporting.formatting import duration
from training.reporting.metrics import STEPS_PER_SYNC, MetricsLog, to_line
from training.reporting.records import IncidentRecord, Record, StepRecord

PATIENCE_SECONDS = 0.25
"""Longest time that training waits for a record to be on disk: once, then not again until the disk has caught up."""
CLOSE_SECONDS = 10.0
"""Longest wait, at the end of a job, for storage that does not take the last records."""
LARGEST_BACKLOG_BYTES = 2**24
"""Records kept in memory while the log cannot be written: about 30,000 steps."""

_RETRY_SECONDS = 1.0
_STANDARD_ERROR = 2


class _GivenUp(Exception):
    """Nobody waits for the thread any more."""


class LogWriter:
    """Takes records in microseconds and writes them in order; one per metrics.jsonl.

    Args:
        path: metrics.jsonl.
        tell: is told what the thread itself has to record.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, tell: Callable[[Record], None] = lambda _record: None) -> None:
        self._log = MetricsLog(path)
        self._tell = tell
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._last: Record | None = None
        self._num_taken = self._num_written = self._num_on_disk = 0
        self._sync_wanted = False
        self._is_behind = False
        """The disk was waited for in vain; nobody waits again before it has caught up."""
        self._is_closing = self._is_given_up = False
        self._failure: OSError | None = None
        self._failing_since = 0.0
        self._thread = threading.Thread(target=self._work, name="metrics log", daemon=True)
        self._thread.start()

    def append(self, record: Record) -> None:
        """Take a record. One that is no step is on disk on return, unless that takes longer than PATIENCE_SECONDS.

        Raises:
            StorageError: too much waits in memory already.
        """
        with self._changed:
            self._take(record)
            if not isinstance(record, StepRecord) and not self._is_behind:
                self._is_behind = not self._wait_until_on_disk(PATIENCE_SECONDS)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until every record taken so far is on disk; return whether it is."""
        with self._changed:
            return self._wait_until_on_disk(timeout_seconds)

    def close(self) -> None:
        """Write what is left and close the file; no record comes after this.

        Raises:
            StorageError: the storage did not take the last records in time.
        """
        with self._changed:
            on_disk = self._wait_until_on_disk(CLOSE_SECONDS)
            self._is_closing, self._is_given_up = True, not on_disk
            self._changed.notify_all()
            if not on_disk:
                raise self._storage_error(f"the last {self._num_taken - self._num_on_disk:,} records are lost")
        self._thread.join()
        self._log.close()

    def _take(self, record: Record) -> None:
        line = to_line(record)
        if self._waiting_bytes + len(line) > LARGEST_BACKLOG_BYTES:
            raise self._storage_error(f"{len(self._waiting):,} records wait in memory, no more are kept")
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self._num_taken += 1
        self._last = record
        self._changed.notify_all()

    def _wait_until_on_disk(self, timeout_seconds: float) -> bool:
        last = self._num_taken
        self._sync_wanted = self._num_on_disk < last
        self._changed.notify_all()
        return self._changed.wait_for(lambda: self._num_on_disk >= last, timeout_seconds)

    def _storage_error(self, what: str) -> StorageError:
        return StorageError(
            f"{self._log.path}: {self._failure or 'the storage does not answer'}; {what}\n"
            "  -> free space or repair the file system, then start again with resume=auto"
        )

    # -- the thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with contextlib.suppress(_GivenUp):
            while lines_and_sync := self._next():
                lines, sync = lines_and_sync
                for line in lines:
                    self._insist(lambda line=line: self._log.write(line))
                    self._note_written(line)
                if sync:
                    self._insist(self._log.sync)
                self._note_done(sync)

    def _next(self) -> tuple[list[bytes], bool] | None:
        """Return the lines to write and whether to sync them, as soon as there is something to do; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._sync_wanted or self._is_closing)
            lines = list(self._waiting)
            if not lines and not self._sync_wanted:
                return None
            due = self._num_written + len(lines) - self._num_on_disk >= STEPS_PER_SYNC
            sync, self._sync_wanted = self._sync_wanted or due, False
            return lines, sync

    def _insist(self, act: Callable[[], None]) -> None:
        """Do something with the file, again and again until it works."""
        while True:
            try:
                return act()
            except OSError as error:
                self._note_failure(error)
            time.sleep(_RETRY_SECONDS)
            with self._changed:
                if self._is_given_up:
                    raise _GivenUp
            with contextlib.suppress(OSError):
                self._log.reopen()

    def _note_failure(self, error: OSError) -> None:
        with self._changed:
            is_first, self._failure, self._is_behind = self._failure is None, error, True
        if is_first:
            self._failing_since = time.monotonic()
            _warn(f"{self._log.path}: {error}; records wait in memory until it can be written again")

    def _note_written(self, line: bytes) -> None:
        with self._changed:
            self._waiting.popleft()
            self._waiting_bytes -= len(line)
            self._num_written += 1

    def _note_done(self, synced: bool) -> None:
        incident = None
        with self._changed:
            if synced:
                self._num_on_disk = self._num_written
            if not self._waiting:
                self._is_behind = False
                if self._failure is not None and self._last is not None:
                    incident, self._failure = self._recovery(self._last, self._failure), None
                    self._take(incident)
            self._changed.notify_all()
        if incident is not None:
            self._tell(incident)

    def _recovery(self, last: Record, failure: OSError) -> IncidentRecord:
        return IncidentRecord(
            step=last.step,
            stage=last.stage,
            what="log_unwritable",
            message=f"{self._log.path.name} could not be written for {duration(time.monotonic() - self._failing_since)}"
            f" ({failure}); its records waited in memory and are all there",
            attempt=last.attempt,
        )


def _warn(text: str) -> None:
    """Say something on standard error, unless whoever should read it does not: then nobody may wait for them."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [_STANDARD_ERROR], [], 0)[1]:
            os.write(_STANDARD_ERROR, f"{text}\n".encode()[: select.PIPE_BUF])
