"""Faults on request, for drills on real runs: the process dies at a named point of a save.

AUTARKY_FAULT=<point>:<rank>:<step>     points: training/checkpoint/commit.py, POINTS
"""

import os
import signal
from collections.abc import Callable, Mapping

from training.errors import ConfigError

VARIABLE = "AUTARKY_FAULT"


def fault_at_point(environment: Mapping[str, str], *, rank: int, points: tuple[str, ...]) -> Callable[[str, int], None]:
    """Return what a saver calls at every point: it kills this process there if the environment says so, else nothing.

    Raises:
        ConfigError: the variable is set and says something else.
    """
    text = environment.get(VARIABLE, "")
    if not text:
        return lambda _point, _step: None
    try:
        point, victim, step = text.split(":")
        wanted = (point, int(victim), int(step))
    except ValueError:
        wanted = ("", 0, 0)
    if wanted[0] not in points:
        raise ConfigError(VARIABLE, text, "is not <point>:<rank>:<step>", f"points: {', '.join(points)}")

    def at_point(point: str, step: int) -> None:
        if (point, rank, step) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return at_point
