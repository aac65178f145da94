"""One run that is disturbed once: who notices and when, when it trains again, whether it ends with the same bits."""

import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.drills.campaign import DrilledRun
from tests.drills.drill_run import LIMIT_SECONDS, Reference, make_reference
from tests.drills.moments import Aim, Place, Watch, wait_for
from tests.drills.starts import ForkServer, Started
from tests.integration.reading import records

CRASH_SEEN_SECONDS = 3.0
ORPHANS_GONE_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 1.0
"""Training does not wait longer for whatever reports or saves."""
SHORT_STEPS = (12, 8)
LONG_STEPS = (24, 24)
SLOW_STEPS = (96, 4)
BITWISE = "yes"
"""All numbers of all steps, every checkpoint of every start and the ledger are those of the undisturbed run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of the table."""

    row: str
    """Of the fault matrix."""
    fault: str
    injected: str
    seen_seconds: float | None = None
    """From the injection until the first of our processes ended or wrote it down; None where there is no such thing."""
    recovered_seconds: float | None = None
    """From the injection to the first new step of the next start; None if nothing stopped."""
    equal: str = BITWISE
    """Or what was compared, and how it came out."""
    remarks: str = ""
    wrong: tuple[str, ...] = ()
    """What is not as it must be."""
    not_run: str = ""
    """Why it cannot be injected here."""


class MissedError(Exception):
    """A moment of a row did not come."""


class Ground:
    """What all rows share."""

    def __init__(self, server: ForkServer, root: Path, *, stops_per_phase: int = 1) -> None:
        self.server = server
        self.root = root
        self.stops_per_phase = stops_per_phase

    @cached_property
    def reference(self) -> Reference:
        """The undisturbed run, short."""
        return make_reference(self.server, self.root, SHORT_STEPS)

    @cached_property
    def long_reference(self) -> Reference:
        """The undisturbed run of the drills that disturb one run many times."""
        return make_reference(self.server, self.root, LONG_STEPS)

    @cached_property
    def slow_reference(self) -> Reference:
        """The undisturbed run that lasts long enough for a slow rank: looked at every 2 s, it is named at the third."""
        return make_reference(self.server, self.root, SLOW_STEPS)

    def folder(self, name: str) -> Path:
        """Return a new folder."""
        found = self.root / f"{name}-{time.monotonic_ns()}"
        found.mkdir()
        return found


@dataclass(kw_only=True, slots=True)
class Times:
    """Of one disturbance, by the monotonic clock; None if it did not come to that."""

    at: float
    seen: float | None = None
    gone: float | None = None
    """Nothing of the job lived any more."""
    recovered: float | None = None

    def since(self, moment: float | None) -> float | None:
        """Return the seconds from the disturbance to a moment."""
        return None if moment is None else moment - self.at


class Disturbed:
    """A run that is started, disturbed at a moment, watched, gone on with and compared.

    Args:
        ground: of the drill.
        expected: incidents that belong to the disturbance.
        server: one that starts its ranks in some special way; None takes the ground's.
        reference: what it must be equal to; None takes the ground's short one.
        save_every_steps: if not 1, only the checkpoints of the ends of training stages must be there in the end.
        overrides: of the run's config.
    """

    def __init__(
        self,
        ground: Ground,
        *,
        expected: Collection[str] = (),
        server: ForkServer | None = None,
        reference: Reference | None = None,
        save_every_steps: int = 1,
        overrides: Sequence[str] = (),
    ) -> None:
        self.run = DrilledRun(
            server or ground.server,
            reference or ground.reference,
            ground.root,
            expected=frozenset({"restart", *expected}),
            save_every_steps=save_every_steps,
            overrides=overrides,
        )
        self.directory = self.run.directory
        self.wrong: list[str] = []
        self.exit_codes: list[int | None] = []
        """Of the ranks, in the start that was disturbed."""
        self.launcher_code: int | None = None
        self.error = ""
        """What exit.json said about it."""
        self._times: Times | None = None
        self._started: Started | None = None
        self._watch: Watch | None = None

    @property
    def started(self) -> Started:
        """The processes."""
        assert self._started is not None
        return self._started

    @property
    def times(self) -> Times:
        """When what happened."""
        assert self._times is not None
        return self._times

    def start(self, environment: dict[str, str] | None = None) -> None:
        """Start the ranks."""
        self._started, self._watch = self.run.start(environment)

    def attach(self, started: Started) -> None:
        """Take a start that somebody else began."""
        self._started = started

    def reach(self, place: Place, *, count: int = 3, delay_seconds: float = 0.0) -> None:
        """Return at a moment of the start: so many steps done, or in the save of that number.

        Raises:
            MissedError: it did not come.
        """
        assert self._watch is not None
        aim = Aim(victim="", place=place, count=count, delay_seconds=delay_seconds)
        if not wait_for(aim, self._watch, has_ended=self.run.has_ended, limit_seconds=LIMIT_SECONDS):
            raise MissedError(f"{place} never came: {self.run.words()}")

    def disturb(self, act: Callable[[], object], *, at: float | None = None) -> None:
        """Do something to it; that is the moment from which all is counted, unless another one is given."""
        self._times = Times(at=time.monotonic() if at is None else at)
        act()

    def disturb_when_it_can(self, act: Callable[[], bool]) -> None:
        """Do something that may not be possible just now, until it was.

        Raises:
            MissedError: it never was.
        """
        deadline = time.monotonic() + LIMIT_SECONDS
        while not act():
            if self.run.has_ended() or time.monotonic() > deadline:
                raise MissedError(f"it was never possible: {self.run.words()}")
            time.sleep(0.002)
        self._times = Times(at=time.monotonic())

    def see_incident(self, what: str, *, keep_on: Callable[[], object] = lambda: time.sleep(0.01)) -> str:
        """Wait until metrics.jsonl says so; return its words.

        Raises:
            MissedError: it never does.
        """
        assert self._watch is not None
        found: list[dict[str, Any]] = []

        def has_come() -> bool:
            assert self._watch is not None
            found[:] = [record for record in self._watch.look() if record.get("what") == what]
            return bool(found)

        self.see(has_come, keep_on=keep_on)
        return found[0]["message"]

    def see(self, has_come: Callable[[], bool], *, keep_on: Callable[[], object] = lambda: time.sleep(0.01)) -> None:
        """Wait until something tells of the disturbance.

        Raises:
            MissedError: nothing does.
        """
        deadline = time.monotonic() + LIMIT_SECONDS
        while not has_come():
            if self.run.has_ended() or time.monotonic() > deadline:
                raise MissedError(f"nothing told of it: {self.run.words()}")
            keep_on()
        self.times.seen = time.monotonic()

    def see_end(self, *, victims: Sequence[str] = (), seen_within: float = CRASH_SEEN_SECONDS) -> None:
        """Wait until others than the victims end, or say why they will, then until nothing lives; check the limits."""
        exit_file = self.directory / "exit.json"
        others = [victim for victim in self.started.victims if victim not in victims]
        deadline = time.monotonic() + LIMIT_SECONDS
        while others and not exit_file.exists() and not any(self.started.has_ended(other) for other in others):
            if time.monotonic() > deadline:
                break  # `end` says so
            time.sleep(0.005)
        self.times.seen = time.monotonic() if others else None
        while not all(self.started.has_ended(victim) for victim in self.started.victims):
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        self.times.gone = time.monotonic()
        self._limit("seen", self.times.since(self.times.seen), seen_within)
        begin = self.times.since(self.times.seen) or 0.0
        self._limit("gone", self.times.gone - self.times.at - begin, ORPHANS_GONE_SECONDS)
        if exit_file.exists():
            lines = json.loads(exit_file.read_text())["error"].strip().splitlines()
            self.error = lines[-1] if lines[0].startswith("Traceback") else " ".join(lines)
        self.end()

    def end(self) -> None:
        """Wait for the end of the start that was disturbed."""
        left = self.run.end(seen=[])
        codes = left.exit_codes if left else {}
        self.exit_codes = [codes.get(pid) for pid in self.started.ranks]
        self.launcher_code = codes.get(self.started.launcher)

    def go_on(self) -> None:
        """Start again, to the end, and compare everything."""
        self.start()
        assert self._watch is not None
        while not any(record["kind"] == "step" for record in self._watch.look()):
            if self.run.has_ended():
                break
            time.sleep(0.005)
        self.times.recovered = time.monotonic()
        left = self.run.end(seen=[])
        if left is None or left.exit_codes[self.started.launcher]:
            self.run.findings.retries.append(f"{self.directory.name}: could not go on; {self.run.words()}")
        else:
            self.run.finish()

    def go_to_end(self) -> None:
        """Let a start that nothing stopped come to its end, and compare everything."""
        self.end()
        if self.launcher_code:
            self.wrong.append(f"it ended with {self.launcher_code}: {self.run.words()}")
        self.run.finish()

    def longest_wait(self) -> float:
        """Return the longest time between two steps that training waited for something else, in seconds."""
        steps = records(self.directory, "step")
        return max(
            later["time"] - earlier["time"] - later["seconds"]
            for earlier, later in pairwise(steps)
            if earlier["stage"] == later["stage"] and earlier["attempt"] == later["attempt"]
        )

    def limit_wait(self) -> str:
        """Check that training never waited longer than it may; return the longest wait in words."""
        longest = self.longest_wait()
        self._limit("the longest wait between steps", longest, LONGEST_WAIT_SECONDS)
        return f"longest wait between two steps {longest:.2f} s"

    def require(self, what: str, is_so: bool) -> None:
        """Note what is not as it must be."""
        if not is_so:
            self.wrong.append(f"not so: {what}")

    def line(self, row: str, fault: str, injected: str, *, remarks: str = "", equal: str = BITWISE) -> Line:
        """Return its line of the table."""
        findings = self.run.findings
        return Line(
            row=row,
            fault=fault,
            injected=injected,
            seen_seconds=self.times.since(self.times.seen),
            recovered_seconds=self.times.since(self.times.recovered),
            equal="NO" if findings.differences or findings.lost_steps else equal,
            remarks=remarks,
            wrong=(*self.wrong, *findings.all()),
        )

    def _limit(self, what: str, seconds: float | None, limit: float) -> None:
        if seconds is not None and seconds > limit:
            self.wrong.append(f"{what}: {seconds:.2f} s, not {limit:.0f} s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where a table was made."""

    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    memory_gib: float = field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    system: str = field(default_factory=lambda: f"{os.uname().sysname} {os.uname().release.partition('-')[0]}")

    def describe(self) -> str:
        """Return it in words."""
        return f"{self.cores} cores, {self.memory_gib:.0f} GiB, {self.system}"
