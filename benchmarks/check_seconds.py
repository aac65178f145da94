"""Seconds of `python -m launch.check`, from the command to its exit: the goal is less than 2."""

import subprocess
import sys
import time
from collections.abc import Sequence

_TIMEOUT_SECONDS = 60


def check_seconds(overrides: Sequence[str], *, repeats: int) -> list[float]:
    """Return the wall seconds of every repeat."""
    command = [sys.executable, "-m", "launch.check", *overrides]
    seconds: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_TIMEOUT_SECONDS)
        seconds.append(time.perf_counter() - started)
    return seconds
