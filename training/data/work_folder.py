"""The folder in which data is prepared: one writer at a time, found again after a kill, given its name by one rename.

<prepared_root>/.preparing-<key>/leases/      who writes; see training/lease.py
                                 read/        sources as they were read (chunks.py, examination.py)
                                 shards/      commits of shards (encoding.py)
                                 data/        what will be <prepared_root>/<key>
"""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from training.data.workers import WorkerDied
from training.durable_files import fsync
from training.errors import ConfigError, DataError, RunInUse, StorageError
from training.lease import Lease, newest_holder

_PREFIX = ".preparing-"
_PATIENCE_SECONDS = 0.5


class WorkFolder:
    """The right to prepare data of one key, and where that happens; see `working_on`."""

    def __init__(self, path: Path, lease: Lease) -> None:
        self._path = path
        self._lease = lease
        self.read = path / "read"
        self.shards = path / "shards"
        self.data = path / "data"

    def commit(self, target: Path) -> None:
        """Give the finished data its name, in the place of what has it; the work folder is gone then.

        Raises:
            RunInUse: another process has taken the work over.
            OSError: it cannot be renamed.
        """
        for path in [*self.data.rglob("*"), self.data]:
            fsync(path)
        self._lease.check()
        try:
            os.rename(self.data, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(self._path / "damaged", ignore_errors=True)
            os.rename(target, self._path / "damaged")
            os.rename(self.data, target)
        fsync(target.parent)
        self.remove()

    def remove(self) -> None:
        """Remove everything."""
        self._lease.release()
        shutil.rmtree(self._path, ignore_errors=True)

    def leave(self) -> None:
        """Let another process go on."""
        self._lease.release()


@contextmanager
def working_on(
    target: Path, *, is_done: Callable[[], bool], wait: Callable[[str], None]
) -> Iterator[WorkFolder | None]:
    """Yield the work folder of prepared data once nobody else holds it, or None if the data is there by then.

    When the block ends without a commit, what is finished is kept for the next one, unless it ended with an error that
    would come again.

    Args:
        target: the folder that is to be made.
        is_done: whether it is there, and whole.
        wait: is called with a sentence about whom this waits for, again and again; may raise to end it.

    Raises:
        StorageError: the folder cannot be made.
    """
    path = _path_of(target)
    while (work := _taken(path, wait)) is None:
        if is_done():
            yield None
            return
    if is_done():  # another process has finished between the two looks
        work.remove()
        yield None
        return
    try:
        yield work
    except BaseException as error:
        if isinstance(error, ConfigError | DataError) and not isinstance(error, WorkerDied):
            work.remove()
        else:
            work.leave()
        raise


def remove_finished(target: Path) -> None:
    """Remove what a process has left that was killed after it had committed `target`.

    Raises:
        StorageError: it cannot be removed.
    """
    path = _path_of(target)
    if not path.exists():
        return
    try:
        WorkFolder(path, Lease.take(path, patience_seconds=0.0)).remove()
    except RunInUse:
        return  # a living process has just committed, and removes it


def unfinished(root: Path, target: Path) -> list[Path]:
    """Return the work folders of other data, whose preparation was interrupted or goes on."""
    return sorted(path for path in root.glob(f"{_PREFIX}*") if path != _path_of(target))


def _path_of(target: Path) -> Path:
    return target.with_name(_PREFIX + target.name)


def _taken(path: Path, wait: Callable[[str], None]) -> WorkFolder | None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        return WorkFolder(path, Lease.take(path, patience_seconds=_PATIENCE_SECONDS))
    except RunInUse:
        holder = newest_holder(path)
        who = f"process {holder.pid} on {holder.host}" if holder else "another process"
        wait(f"waiting for {who}, which prepares the same data")
        time.sleep(_PATIENCE_SECONDS)
        return None
    except StorageError:
        if path.exists():
            raise
        return None  # removed between the two calls, by the process that finished the work
