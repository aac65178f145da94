"""A directory that appears whole or not at all, for what one process writes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.checkpoint.commit import commit_directory
from training.errors import StorageError


@contextmanager
def whole_directory(final: Path) -> Iterator[Path]:
    """Yield an empty folder `<final>.tmp` that becomes `final` when the block ends; if it raises, nothing is left.

    Raises:
        StorageError: `final` holds something, `<final>.tmp` is there, or the disk does not take it.
    """
    final = Path(os.path.abspath(final))  # "." has no name to put .tmp behind
    work = final.with_name(f"{final.name}.tmp")
    try:
        if final.exists() and (not final.is_dir() or any(final.iterdir())):
            raise StorageError(f"{final} holds something already\n  -> give another place; nothing is ever overwritten")
        work.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
    except FileExistsError as error:
        raise StorageError(
            f"{work} is there: another process is writing it, or was killed while it did\n"
            "  -> remove it if no process writes it, and try again"
        ) from error
    except OSError as error:
        raise StorageError(f"{final} cannot be made: {error}\n  -> free space or mend the storage") from error
    try:
        yield work
        commit_directory(work, final)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError):
            remedy = "free space or mend the storage"
            raise StorageError(f"{final} cannot be written: {error}\n  -> {remedy}") from error
        raise
