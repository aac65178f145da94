"""A view on a thread of its own, so that training waits for no terminal, pipe or process."""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from training.reporting.records import Record

_log = logging.getLogger(__name__)

_MOST_WAITING = 1000
"""Records a view may be behind; then it loses the oldest. They are all in metrics.jsonl."""


class Sink(Protocol):
    """Something that takes records: the log or one of its views."""

    def append(self, record: Record) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Finish; no record comes after this."""
        ...


class InBackground:
    """Opens, feeds and closes a view on a thread of its own; a view that fails ends, and nothing else does.

    Args:
        name: of the thread.
        open_view: makes the view.
        close_seconds: longest wait for the view to finish.
    """

    def __init__(self, name: str, open_view: Callable[[], Sink], *, close_seconds: float) -> None:
        self._open_view = open_view
        self._close_seconds = close_seconds
        self._waiting: deque[Record] = deque(maxlen=_MOST_WAITING)
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def append(self, record: Record) -> None:
        """Take a record for the view; returns at once."""
        with self._changed:
            self._waiting.append(record)
            self._changed.notify_all()

    def close(self) -> None:
        """Let the view show the rest and finish, or leave it alone if that takes too long."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(self._close_seconds)

    def _work(self) -> None:
        try:
            view = self._open_view()
            while (record := self._next()) is not None:
                with contextlib.suppress(OSError):  # what could not be shown is in metrics.jsonl
                    view.append(record)
            view.close()
        except Exception:  # a view's failure is its own: it is said in this rank's log
            _log.exception("the view %s ended; training is not affected", self._thread.name)

    def _next(self) -> Record | None:
        """Return the next record as soon as there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return self._waiting.popleft() if self._waiting else None
