"""Saves while training goes on: a thread copies the state, writes and commits it; no update overtakes the copy."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.checkpoint.commit import POINTS, SaveOrder, write_checkpoint
from training.checkpoint.manifest import Progress
from training.checkpoint.ranks import Ranks
from training.checkpoint.snapshot import Snapshot
from training.errors import SaveFailed


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveOutcome:
    """How a save ended, equal on every rank but for the times."""

    step: int
    checkpoint: Path | None
    """The committed directory; None if the save failed."""
    failure: SaveFailed | None
    stall_seconds: float
    """How long training stood still for it on this rank: before an update, until the copy was complete, and here."""
    write_seconds: float
    """From the start of the copy to the commit."""


class Saver:
    """Writes one checkpoint at a time; its methods are collective.

    Args:
        ranks: a group of its own, with a time limit made for disks: it is used by the writing thread.
        config: the run's, as plain values, for the manifest.
        attempt: the lease's number.
        check_lease: raises RunInUse if another start has taken the run directory over.
        before_commit: is called on rank 0, on the writing thread, right before a checkpoint counts.
        at_point: is told every point of the protocol with the step.
        asynchronous: False writes before `begin` returns.
    """

    def __init__(
        self,
        ranks: Ranks,
        *,
        config: Mapping[str, Any],
        attempt: int = 0,
        check_lease: Callable[[], None] = lambda: None,
        before_commit: Callable[[], None] = lambda: None,
        at_point: Callable[[str, int], None] = lambda _point, _step: None,
        asynchronous: bool = True,
    ) -> None:
        self._ranks = ranks
        self._config = config
        self._attempt = attempt
        self._check_lease = check_lease
        self._before_commit = before_commit
        self._at_point = at_point
        self._asynchronous = asynchronous
        self._writing: _Writing | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a save has begun and `finish` was not called for it, alike on every rank."""
        return self._writing is not None

    @property
    def is_written(self) -> bool:
        """Whether this rank's part of the save in flight has ended, well or not."""
        return self._writing is not None and not self._writing.is_alive()

    def reach(self, point: str, step: int) -> None:
        """Say that a point of the protocol is reached which lies outside of the write itself."""
        assert point in POINTS, point
        self._at_point(point, step)

    def begin(self, snapshot: Snapshot, *, directory: Path, progress: Progress, layout: str) -> None:
        """Begin to copy the live state and to write it to `directory/step-N`.

        Until the snapshot is settled the live state must not change; engines see to that before each update.
        """
        assert self._writing is None, "finish the save before first"
        order = SaveOrder(
            directory=directory,
            progress=progress,
            layout=layout,
            config=self._config,
            attempt=self._attempt,
            check_lease=self._check_lease,
            before_commit=self._before_commit,
            at_point=self._at_point,
        )
        begun = time.perf_counter()
        self.reach("save_begun", progress.step)
        snapshot.expect_take()
        self._writing = _Writing(order, snapshot, self._ranks)
        self._writing.start()
        if not self._asynchronous:
            self._writing.join()
        self._stall_seconds = time.perf_counter() - begun

    def finish(self) -> SaveOutcome:
        """Wait for the save in flight and return how it ended.

        Raises:
            RunInUse: on rank 0: another start has taken the run directory over.
            Exception: whatever else ended the writing: a lost peer, a bug.
        """
        writing = self._writing
        assert writing is not None, "begin a save first"
        begun = time.perf_counter()
        writing.join()
        self._writing = None
        if writing.error is not None and not isinstance(writing.error, SaveFailed):
            raise writing.error
        return SaveOutcome(
            step=writing.order.progress.step,
            checkpoint=writing.checkpoint,
            failure=writing.error,
            stall_seconds=self._stall_seconds + writing.snapshot.waited_seconds + time.perf_counter() - begun,
            write_seconds=writing.seconds,
        )


class _Writing(threading.Thread):
    """The write of one checkpoint. A daemon: a rank that ends with an error does not wait for a disk."""

    def __init__(self, order: SaveOrder, snapshot: Snapshot, ranks: Ranks) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.order = order
        self.checkpoint: Path | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self.snapshot = snapshot
        self._ranks = ranks

    def run(self) -> None:
        """Write; the outcome is read after `join`."""
        begun = time.perf_counter()
        try:
            self.snapshot.take()
            self.checkpoint = write_checkpoint(self.order, self.snapshot, self._ranks)
        except Exception as error:  # handed to the training thread, which raises it
            self.error = error
        self.seconds = time.perf_counter() - begun
