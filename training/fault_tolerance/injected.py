"""Faults on request, for drills on real runs: a process dies at a named point of a save, or stands still in a section.

AUTARKY_FAULT=<point>:<rank>:<step>                points: training/checkpoint/commit.py, POINTS
AUTARKY_STALL=<section>:<rank>:<step>:<seconds>    step * is every step, seconds inf is for ever
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from training.engine.collectives import CollectiveLog
from training.errors import ConfigError
from training.fault_tolerance.heartbeat import Heartbeat, Section

VARIABLE = "AUTARKY_FAULT"
STALL_VARIABLE = "AUTARKY_STALL"


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


def make_heartbeat(environment: Mapping[str, str], collectives: CollectiveLog, *, rank: int) -> Heartbeat:
    """Return a rank's heartbeat; one that stands still in a section if the environment says so.

    Raises:
        ConfigError: the variable is set and says something else.
    """
    text = environment.get(STALL_VARIABLE, "")
    if not text:
        return Heartbeat(collectives)
    try:
        section, victim, step, seconds = text.split(":")
        stall = _Stall(Section(section), None if step == "*" else int(step), float(seconds))
        return _StallingHeartbeat(collectives, stall) if int(victim) == rank else Heartbeat(collectives)
    except ValueError:
        sections = ", ".join(Section)
        raise ConfigError(
            STALL_VARIABLE, text, "is not <section>:<rank>:<step>:<seconds>", f"sections: {sections}"
        ) from None


@dataclass(frozen=True, slots=True)
class _Stall:
    section: Section
    step: int | None
    seconds: float


class _StallingHeartbeat(Heartbeat):
    def __init__(self, collectives: CollectiveLog, stall: _Stall) -> None:
        super().__init__(collectives)
        self._stall = stall

    def section(self, section: Section, step: int | None = None) -> None:
        """Begin a section, and stand still there."""
        super().section(section, step)
        if section is self._stall.section and self._stall.step in (None, self.doing.step):
            seconds = self._stall.seconds
            if math.isinf(seconds):
                print(f"{STALL_VARIABLE} at {time.monotonic()}", file=sys.stderr, flush=True)  # noqa: T201
            threading.Event().wait(None if math.isinf(seconds) else seconds)
