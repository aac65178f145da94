"""Disks of our own, small enough to be full: mounts that only this process and its children see."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_IN_OWN_MOUNTS = "AUTARKY_DRILL_HAS_OWN_MOUNTS"
_CHUNK = bytes(2**16)


def go_into_own_mounts(module: str, arguments: Sequence[str]) -> None:
    """Become `python -m MODULE ARGUMENTS` again with mounts of its own; return if it has them or may not have them."""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if not can_mount() and subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0:
        os.environ[_IN_OWN_MOUNTS] = "1"
        os.execvp(unshare[0], [*unshare, sys.executable, "-m", module, *arguments])


def can_mount() -> bool:
    """Return whether this process has mounts of its own."""
    return _IN_OWN_MOUNTS in os.environ


@contextlib.contextmanager
def disk(folder: Path, *, size_bytes: int) -> Iterator[Path]:
    """Give a disk of a size, mounted over a folder; unmounted in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        _run("umount", "-l", str(folder))


@contextlib.contextmanager
def file_on(disk: Path, file: Path) -> Iterator[None]:
    """Let a file lie on a disk, and take what was written there home in the end."""
    file.touch()
    there = disk / file.name
    there.touch()
    _run("mount", "--bind", str(there), str(file))
    try:
        yield
    finally:
        content = there.read_bytes()
        _run("umount", "-l", str(file))
        file.write_bytes(content)


def fill(disk: Path) -> Path:
    """Fill a disk up to its last byte; return the file to remove."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(_CHUNK)
    return ballast


def make_read_only(disk: Path, yes: bool) -> bool:
    """Remount a disk; return False if that cannot be now, since a file is being written."""
    words = ["mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(disk)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _run(*words: str) -> None:
    subprocess.run(words, check=True)
