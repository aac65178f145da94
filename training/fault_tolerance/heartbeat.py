"""What this rank is doing, as its training thread says it: two words at every turn, read by the watchdog's threads."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from training.engine.collectives import CollectiveLog


class Section(StrEnum):
    """Parts of a run that may take a time of their own (`fault_tolerance.hang`)."""

    start_up = "start_up"
    prepare = "prepare"
    build = "build"
    load = "load"
    data = "data"
    step = "step"
    save = "save"
    evaluation = "evaluation"
    between = "between"
    end = "end"


_WINDOWS_TOLD = 4


@dataclass(frozen=True, slots=True, eq=False)
class Doing:
    """A turn: a new object each time, so that whoever looks sees that there was one."""

    section: Section
    step: int


@dataclass(frozen=True, slots=True)
class Window:
    """A whole window of steps."""

    number: int
    """Counted from the first step of the run."""
    busy_seconds: float
    """Mean of its steps: wall time less waiting for peers."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the watchdog's threads saw that belongs into metrics.jsonl; the training thread writes it there."""

    what: str
    message: str


class Heartbeat:
    """The training thread's side. `section` costs one object and one assignment."""

    def __init__(self, collectives: CollectiveLog) -> None:
        self.collectives = collectives
        self.doing = Doing(Section.start_up, 0)
        self.place = 0
        """Pipeline stage, as of the last step."""
        self.windows: tuple[Window, ...] = ()
        """The last ones, newest last: ranks tell of them at different moments, and are compared in one they all had."""
        self.notices: deque[Notice] = deque()
        self.window_steps = 1
        self._busy_seconds: list[float] = []
        self._waited_before = 0.0

    def section(self, section: Section, step: int | None = None) -> None:
        """Say that a section begins, or that one goes on: its time starts anew."""
        self.doing = Doing(section, self.doing.step if step is None else step)

    def go_on(self) -> None:
        """Say that the present section makes progress."""
        self.doing = Doing(self.doing.section, self.doing.step)

    def step_begins(self, step: int) -> None:
        """Say that a step begins: from here on its waiting counts."""
        self._waited_before = self.collectives.training.waited_seconds
        self.section(Section.step, step)

    def step_ends(self, step: int, *, seconds: float, place: int) -> None:
        """Say how long a step took.

        Args:
            step: its number, from 1.
            seconds: all of it, reading its data too.
            place: pipeline stage of this rank.
        """
        if place != self.place:
            self.place, self.windows = place, ()  # other work
        self._busy_seconds.append(seconds - (self.collectives.training.waited_seconds - self._waited_before))
        if step % self.window_steps == 0:
            mean = sum(self._busy_seconds) / len(self._busy_seconds)
            self.windows = (*self.windows, Window(step // self.window_steps, mean))[-_WINDOWS_TOLD:]
            self._busy_seconds.clear()

    def take_notices(self, tell: Callable[[str, str], None]) -> None:
        """Hand over what the watchdog's threads have seen since the last call."""
        while self.notices:
            notice = self.notices.popleft()
            tell(notice.what, notice.message)
