"""Let the kernel's out-of-memory killer take a process: a control group with next to no memory for it alone."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_LIMIT_BYTES = 2**20


def why_not_kill_by_memory() -> str:
    """Return why no control group with a limit on memory can be made here; "" if it can."""
    folder, limit = _place()
    if not folder.is_dir():
        return "no memory controller"
    probe = folder / f"autarky-probe-{os.getpid()}"
    try:
        probe.mkdir()
        has_limit = (probe / limit).exists()
        probe.rmdir()
    except OSError as error:
        return f"control groups cannot be made: {error.strerror}"
    return "" if has_limit else "the memory controller is not delegated"


@contextlib.contextmanager
def kill_by_memory(pid: int) -> Iterator[None]:
    """Give a living process no more memory than it has; the kernel kills it when it next touches a new page."""
    folder, limit = _place()
    group = folder / f"autarky-drill-{os.getpid()}-{pid}"
    group.mkdir()
    try:
        (group / limit).write_text(str(_LIMIT_BYTES))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        _remove(group)


def _place() -> tuple[Path, str]:
    """Return the folder of control groups that limit memory, and the limit's name: version 1 or 2."""
    if (_ROOT / "memory").is_dir():
        return _ROOT / "memory", "memory.limit_in_bytes"
    return _ROOT, "memory.max"


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
