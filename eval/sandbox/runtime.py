"""The files a Python without packages needs, and nothing else of the host: they are all that a sandbox shows of it."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eval.sandbox.limits import SandboxUnavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """This interpreter's standard library and shared libraries."""

    python: Path
    standard_library: Path
    shared_libraries: tuple[Path, ...]
    """As the dynamic linker names them, itself included."""

    @property
    def readable(self) -> tuple[Path, ...]:
        """What is shown, each at its own path."""
        return (self.python, self.standard_library, *self.shared_libraries)

    @property
    def hidden(self) -> Iterator[Path]:
        """Yield the folders inside of it that are not shown: installed packages."""
        for name in ("site-packages", "dist-packages"):
            if (self.standard_library / name).is_dir():
                yield self.standard_library / name


@cache
def python_runtime() -> Runtime:
    """Return what runs this process, without its packages.

    Raises:
        SandboxUnavailable: the dynamic linker does not say what Python needs.
    """
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    standard_library = Path(sysconfig.get_path("stdlib"))
    binaries = [python, *sorted((standard_library / "lib-dynload").glob("*.so"))]
    command = ["ldd", *map(str, binaries)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxUnavailable(
            f"{python}: its shared libraries cannot be listed: {error}\n  -> install ldd"
        ) from error
    libraries = sorted({Path(path) for path in re.findall(r"(/\S+) \(0x", said)})
    if not libraries or not python.is_file():
        raise SandboxUnavailable(
            f"{python}: ldd names no shared library of it: {said[:200]}\n  -> run under a Python linked dynamically"
        )
    return Runtime(python=python, standard_library=standard_library, shared_libraries=tuple(libraries))


def others_can_reach(path: Path) -> bool:
    """Return whether a user who owns nothing can come to a file through the folders above it."""
    return all(os.stat(parent).st_mode & 0o001 for parent in path.resolve().parents)
