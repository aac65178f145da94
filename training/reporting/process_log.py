"""The log of one process, logs/rank-NNNNN.log, on a thread of its own: a log line never waits for a disk."""

import contextlib
import io
import logging
import os
import queue
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from types import TracebackType
from typing import Self

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_MOST_WAITING = 10_000
_CLOSE_SECONDS = 5.0


class ProcessLog:
    """Sends all logging and warnings of this process to a file, from its making to `close`.

    Lines that the disk does not take are lost: the truth about a run is in metrics.jsonl, not here.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        file = _File(path, encoding="utf-8")
        file.setFormatter(logging.Formatter(_FORMAT))
        lines: queue.Queue[logging.LogRecord] = queue.Queue(_MOST_WAITING)
        self._listener = _Listener(lines, file)
        logging.basicConfig(handlers=[_Hurried(lines)], level=logging.INFO, force=True)
        logging.captureWarnings(True)
        self._listener.start()

    def close(self) -> None:
        """Write what is left, within seconds."""
        self._listener.end(_CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Hurried(QueueHandler):
    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


class _Listener(QueueListener):
    def end(self, timeout_seconds: float) -> None:
        """Stop, but wait no longer than so for a disk that does not answer."""
        with contextlib.suppress(queue.Full):
            self.enqueue_sentinel()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            self._thread = None


class _File(logging.FileHandler):
    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        return os.fdopen(descriptor, "a", encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: a full disk would be said about every line, and on standard error."""
