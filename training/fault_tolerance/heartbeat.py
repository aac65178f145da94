"""What this rank is doing, as its training thread says it: two words at every turn, read by the watchdog's threads.

The same turns keep the books of its time: every second since the launch belongs to one section, to a step or to what
lies between steps (`take_spent`), so that what training/reporting/goodput.py adds up is the wall time.
"""

import time
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


OTHER = "other"
"""Time between the end of a step and the next section: records, checks, decisions."""
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
        self._spent: dict[str, float] = {}
        self._stretch: str = Section.start_up
        self._begun = self._since = time.perf_counter()
        self._computes = False
        """Whether a step is computed; after it the section goes by that name still."""

    def section(self, section: Section, step: int | None = None) -> None:
        """Say that a section begins, or that one goes on: its time starts anew."""
        self._turn(OTHER if section is Section.step and not self._computes else section)
        self.doing = Doing(section, self.doing.step if step is None else step)

    def go_on(self) -> None:
        """Say that the present section makes progress."""
        self.doing = Doing(self.doing.section, self.doing.step)

    def step_begins(self, step: int) -> None:
        """Say that a step begins: from here on its waiting counts."""
        self._waited_before = self.collectives.training.waited_seconds
        self._computes = True
        self.section(Section.step, step)

    def step_ends(self, step: int, *, seconds: float, place: int) -> float:
        """Say how long a step took; return how much of it this rank waited in collectives.

        Args:
            step: its number, from 1.
            seconds: all of it, reading its data too.
            place: pipeline stage of this rank.
        """
        self._computes = False
        self._turn(OTHER)
        waited = self.collectives.training.waited_seconds - self._waited_before
        if place != self.place:
            self.place, self.windows = place, ()  # other work
        self._busy_seconds.append(seconds - waited)
        if step % self.window_steps == 0:
            mean = sum(self._busy_seconds) / len(self._busy_seconds)
            self.windows = (*self.windows, Window(step // self.window_steps, mean))[-_WINDOWS_TOLD:]
            self._busy_seconds.clear()
        return waited

    @property
    def age_seconds(self) -> float:
        """Return how long ago this object was made."""
        return time.perf_counter() - self._begun

    def launched_before(self, seconds: float) -> None:
        """Say how long before this object the start was launched: that is start-up, too."""
        self._spent[Section.start_up] = self._spent.get(Section.start_up, 0.0) + seconds

    def take_spent(self) -> dict[str, float]:
        """Return the seconds of each section, and of OTHER, since the last call; all calls together are all time."""
        self._turn(self._stretch)
        spent, self._spent = self._spent, {}
        return spent

    def _turn(self, stretch: str) -> None:
        now = time.perf_counter()
        self._spent[self._stretch] = self._spent.get(self._stretch, 0.0) + now - self._since
        self._stretch, self._since = stretch, now

    def take_notices(self, tell: Callable[[str, str], None]) -> None:
        """Hand over what the watchdog's threads have seen since the last call."""
        while self.notices:
            notice = self.notices.popleft()
            tell(notice.what, notice.message)
