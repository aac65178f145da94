"""Files that survive a kill and a power cut: whole old content or whole new content, on disk when the call returns."""

import os
import secrets
from pathlib import Path

from training.errors import StorageError


def write_durably(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole, making its folder if needed. One writer per file at a time.

    Raises:
        StorageError: it could not be written; the old file is as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = new_file(path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
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
            temporary.unlink(missing_ok=True)  # nothing is left of it after the rename


def new_file(folder: Path, *, prefix: str) -> tuple[int, Path]:
    """Return the descriptor and path of a file that was not there before, readable by whom the umask lets."""
    path = folder / f"{prefix}{secrets.token_hex(8)}.tmp"
    # Not mkstemp: its files are their owner's alone, and the team that watches a run is shut out.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), path


def refuse_world_writable() -> None:
    """Make sure that nothing this process or its children create can be written by everyone, whatever the umask was."""
    os.umask(os.umask(0o077) | 0o002)


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
