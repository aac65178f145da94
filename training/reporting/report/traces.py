"""Files of the profiler in a run directory: which ones its records name, and what of it a page or a server may offer.

Records are text that anyone may have written. So a path is offered only if it is plain, and opened without following
a link anywhere on the way.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from training.reporting.records import ProfileRecord


def trace_paths(profiles: Iterable[ProfileRecord]) -> set[str]:
    """Return the paths in the run directory that the records name and that may be offered."""
    named = (path for record in profiles for path in (record.trace, record.memory) if path)
    return {path for path in named if is_plain(path)}


def trace_link(path: str | None) -> str:
    """Return a path's address relative to the run directory, for a link; empty if it may not be offered."""
    return quote(path) if path and is_plain(path) else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """An operator of a profile."""

    name: str
    calls: float
    seconds: float
    """Its own time."""
    share: float
    """Of the time of all that are listed."""


def costliest(profile: ProfileRecord) -> list[Operator]:
    """Return the operators of a profile, the costliest first; what is none is left out."""
    found = [
        (name, float(calls), float(seconds))
        for operator in profile.operators
        if isinstance(name := operator.get("name"), str)
        and isinstance(calls := operator.get("calls"), int | float)
        and isinstance(seconds := operator.get("seconds"), int | float)
    ]
    total = sum(seconds for _, _, seconds in found) or 1.0
    found.sort(key=lambda operator: -operator[2])
    return [Operator(name=name, calls=calls, seconds=seconds, share=seconds / total) for name, calls, seconds in found]


def is_plain(path: str) -> bool:
    """Return whether a path leads down from the run directory by names alone, and is no address of anything else."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and str(PurePosixPath(path)) == path
        and not path.startswith("/")
        and ".." not in parts
        and ":" not in parts[0]
        and path.isprintable()
        and "\\" not in path
    )


def open_inside(directory: Path, path: str) -> int:
    """Return a file descriptor of a plain file in the directory, to be read; no link on the way is followed.

    Raises:
        OSError: it is not there, or not a plain file, or reached only by a link.
    """
    *folders, name = PurePosixPath(path).parts
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(folder, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is no plain file")
    return file
