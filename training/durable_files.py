"""Files that survive a kill and a power cut: whole old content or whole new content, on disk when the call returns."""

import os
import tempfile
from pathlib import Path

from training.errors import StorageError


def write_durably(path: Path, text: str) -> None:
    """Replace a file as a whole, making its folder if needed. One writer per file at a time.

    Raises:
        StorageError: it could not be written; the old file is as it was.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.fchmod(descriptor, 0o644)  # mkstemp shuts out the team that watches the run
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync(path.parent)  # makes the rename itself durable
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error}\n  -> free space or mend the storage, then start again with resume=auto"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)  # nothing is left of it after the rename


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
