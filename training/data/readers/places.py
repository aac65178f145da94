"""The files of a source: which they are, in which order, and their bytes, decompressed where their names say so."""

import bz2
import gzip
import lzma
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import IO

from training.config.data_schema import SourceConfig, SourceKind
from training.errors import ConfigError, DataError

_STDLIB_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error)


def source_files(name: str, source: SourceConfig) -> list[tuple[str, Path]]:
    """Return (place, path) of every file of a source that has files, sorted by place.

    A place is the kind and the path below the source's own folder: a moved folder has the same places.

    Raises:
        ConfigError: `path` is missing, or matches no file.
    """
    if source.kind is SourceKind.python_stdlib:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [path for path in root.rglob("*.py") if _is_stdlib_source(path.relative_to(root))]
    else:
        root, pattern = _split_glob(name, source)
        visible = (p for p in root.glob(pattern) if not any(x.startswith(".") for x in p.relative_to(root).parts))
        paths = [path for path in visible if path.is_file()]
        if not paths:
            raise ConfigError(
                f"data.sources.{name}.path", source.path, "it matches no file", "name a folder, a file or a glob"
            )
    return sorted((f"{source.kind}/{path.relative_to(root).as_posix()}", path) for path in paths)


@contextmanager
def opened(name: str, path: Path) -> Iterator[IO[bytes]]:
    """Yield a file's content to be read, decompressed if its name ends in .gz, .xz or .bz2.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            yield file
    except _DAMAGED as error:
        raise unreadable(name, path, error) from error


def unreadable(name: str, path: Path, error: Exception) -> DataError:
    """Return that a file of a source cannot be read."""
    return DataError(
        f"data.sources.{name}: {path} cannot be read: {type(error).__name__}: {error}\n"
        "  -> mend the file or its permissions, or leave it out of data.sources."
        f"{name}.path"
    )


def _is_stdlib_source(path: Path) -> bool:
    # _sysconfigdata_*.py holds the paths of the machine that built this Python: no text to learn, never the same twice.
    return _STDLIB_SKIPPED_FOLDERS.isdisjoint(path.parts) and not path.name.startswith("_sysconfigdata")


def _split_glob(name: str, source: SourceConfig) -> tuple[Path, str]:
    """Return the folder that places count from, and the pattern of the files under it."""
    if not source.path:
        raise ConfigError(
            f"data.sources.{name}.path", source.path, f"{source.kind} needs one", "name a folder, a file or a glob"
        )
    path = Path(source.path)
    if path.is_dir():
        return path, "**/*"
    fixed = list(takewhile(lambda part: not set(part) & set("*?["), path.parts))
    if len(fixed) == len(path.parts):
        return path.parent, path.name
    return Path(*fixed), str(Path(*path.parts[len(fixed) :]))
