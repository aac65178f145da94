"""One run directory, told to stop in every phase and started again until it is done, then compared with the reference.

Each start is told once: one rank, one rank twice, two ranks by different signals, or all. Then every rank must leave
with the code STOPPED, and the newest checkpoint must be that of the last step that was done: no step is lost.
"""

import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.drills.campaign import DrilledRun
from tests.drills.drill_run import LIMIT_SECONDS, WORLD_SIZE, Findings, Reference
from tests.drills.phases import Phase, PhaseWatch
from tests.drills.starts import ForkServer, Started
from tests.integration.reading import ledger
from training.errors import ExitCode

SAVE_EVERY_STEPS = 3
"""So that most stops come between two periodic saves."""
WISHES = (signal.SIGTERM, signal.SIGUSR1)
_SHARE_OF_PHASE = 0.7
"""Signals are sent up to here, since what a phase takes differs from start to start."""
_SHORTER = 0.8
_TOO_SHORT_SECONDS = 0.2
"""Row P2 of the fault matrix: SIGKILL so soon after the wish."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """One start that was told to stop while it was in a phase."""

    phase: Phase
    manner: str
    """Who was told what, for example "rank 1 SIGTERM, rank 1 SIGTERM"."""
    honoured: bool
    """All ranks left with STOPPED."""
    steps_lost: int
    """Steps that this start did, or found saved, and that the newest checkpoint does not hold."""
    seconds: float
    """From the first signal to the end of the last process."""
    too_short: bool = False
    """SIGKILL came so soon that honouring was not asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StopOutcome:
    """What became of one run."""

    stops: list[Stop] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    num_starts: int = 0
    num_late: int = 0
    """Starts whose phase was over before the signal was sent; they do not count."""


class StoppedRun:
    """A run directory from stop to stop."""

    def __init__(self, server: ForkServer, reference: Reference, root: Path, draw: random.Random) -> None:
        self.run = DrilledRun(server, reference, root, save_every_steps=SAVE_EVERY_STEPS)
        self.stops: list[Stop] = []
        self.num_late = 0
        self._prepared_root = root / "prepared"
        self._reference = reference
        self._draw = draw

    def can_reach(self, phase: Phase) -> bool:
        """Return whether the next start comes through a phase, with room to spare."""
        newest = max(self.run.steps, default=0)
        statuses = [entry["status"] for entry in ledger(self.run.directory).get("stages", [])]
        first_end, last_end = self._reference.stage_ends
        match phase:
            case Phase.start_up | Phase.preparation | Phase.build:
                return newest < last_end - 2
            case Phase.first_evaluation:
                return newest == 0 and ledger(self.run.directory).get("start_evaluation") is None
            case Phase.accumulation | Phase.save:
                end = first_end if newest < first_end else last_end
                return newest <= end - 2 * SAVE_EVERY_STEPS - 2 and "trained" not in statuses
            case Phase.evaluation:
                return newest <= first_end and statuses[:1] in ([], ["pending"], ["training"], ["trained"])
            case Phase.between_stages:
                return newest <= first_end
        raise AssertionError(phase)

    def stop(self, phase: Phase, *, phase_seconds: float, too_short: bool = False) -> Stop | None:
        """Start the run and tell it to stop at a random moment of a phase; None if it was too late for that."""
        if phase is Phase.preparation:
            for prepared in self._prepared_root.glob("[!.]*"):
                shutil.rmtree(prepared)
        before = max(self.run.steps, default=0)
        count = self._draw.randint(1, 3) if phase is Phase.accumulation else 1
        started, watch = self.run.start()
        phases = PhaseWatch(self.run.directory, self._prepared_root, watch)
        if not self._wait_until(phases, phase, count):
            return self._missed(phase)
        time.sleep(self._draw.uniform(0, _SHARE_OF_PHASE * phase_seconds))
        seen = self.run.steps
        is_late = phases.is_over(phase) or self.run.has_ended()
        begun = time.monotonic()
        manner = self._tell(started)
        if too_short:
            time.sleep(_TOO_SHORT_SECONDS)
            for victim in started.victims:
                started.kill(victim)
        left = self.run.end(seen=seen)
        seconds = time.monotonic() - begun
        if left is None:
            return None
        codes = [left.exit_codes.get(pid) for pid in started.ranks]
        done = max([before, *(record["step"] for record in watch.look() if record["kind"] == "step")])
        stop = Stop(
            phase=phase,
            manner=manner,
            honoured=codes == [ExitCode.STOPPED] * WORLD_SIZE,
            steps_lost=done - max(self.run.steps, default=0),
            seconds=seconds,
            too_short=too_short,
        )
        if not too_short and not (stop.honoured and stop.steps_lost == 0):
            self._complain(f"{phase}: {manner}: exit codes {codes}, {stop.steps_lost} steps lost; {self.run.words()}")
        if is_late and stop.honoured:
            self.num_late += 1
            return None
        self.stops.append(stop)
        return stop

    def _wait_until(self, phases: PhaseWatch, phase: Phase, count: int) -> bool:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not phases.has_begun(phase, count):
            if self.run.has_ended() or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def _missed(self, phase: Phase) -> None:
        self.run.end(seen=[])
        self._complain(f"{phase} never came; {self.run.words()}")

    def _complain(self, what: str) -> None:
        self.run.findings.retries.append(f"{self.run.directory.name}, start {self.run.num_starts}: {what}")

    def _tell(self, started: Started) -> str:
        """Tell some ranks to stop, and return whom and how."""
        ranks = list(started.victims[1:])
        first, second = self._draw.choice(WISHES), self._draw.choice(WISHES)
        rank = self._draw.choice(ranks)
        told: list[tuple[str, signal.Signals]] = self._draw.choice(
            [
                [(rank, first)],
                [(rank, first), (rank, second)],
                [(rank, first), (self._draw.choice(ranks), second)],
                [(each, first) for each in ranks],
            ]
        )
        for position, (victim, number) in enumerate(told):
            if position:
                time.sleep(self._draw.choice([0.0, self._draw.uniform(0, 0.2)]))
            started.send(victim, number)
        return ", ".join(f"{victim} {number.name}" for victim, number in told)


def stop_one_run(
    server: ForkServer,
    reference: Reference,
    root: Path,
    *,
    wanted: Sequence[Phase],
    phase_seconds: dict[Phase, float],
    draw: random.Random,
    too_short: int = 0,
) -> StopOutcome:
    """Stop one run in each of the wanted phases that it comes through, in the order of a run, then let it end.

    Every second start-up and build comes later, where there is something to load.

    Args:
        wanted: a phase as often as it is wanted; what the run has no room for is left out.
        phase_seconds: about how long a phase takes; shortened where that turns out to be too long.
        too_short: how many starts are killed 0.2 s after they were told, in the middle of training.
    """
    stopped = StoppedRun(server, reference, root, draw)
    plan = [(phase, False) for phase in sorted(wanted, key=list(Phase).index)]
    for item in plan[::2]:
        if item[0] in (Phase.start_up, Phase.build):
            plan.remove(item)
            plan.insert(draw.randint(len(plan) // 2, len(plan)), item)
    plan += [(Phase.accumulation, True)] * too_short
    for phase, soon_killed in plan:
        if stopped.run.findings.all():
            break
        if stopped.can_reach(phase):
            num_late = stopped.num_late
            stopped.stop(phase, phase_seconds=phase_seconds[phase], too_short=soon_killed)
            if stopped.num_late > num_late:
                phase_seconds[phase] *= _SHORTER  # the machine was busier when it was measured
    if not stopped.run.findings.retries:
        stopped.run.finish()
    return StopOutcome(
        stops=stopped.stops,
        findings=stopped.run.findings,
        num_starts=stopped.run.num_starts,
        num_late=stopped.num_late,
    )


def measure_phases(server: ForkServer, reference: Reference, root: Path) -> dict[Phase, float]:
    """Return how long each phase takes in a run that nobody disturbs."""
    found = {Phase.accumulation: reference.step_seconds}
    for prepare in (True, False):
        run = DrilledRun(server, reference, root, save_every_steps=SAVE_EVERY_STEPS)
        if prepare:
            for prepared in (root / "prepared").glob("[!.]*"):
                shutil.rmtree(prepared)
        started, watch = run.start()
        phases = PhaseWatch(run.directory, root / "prepared", watch)
        begun: dict[Phase, float] = {}
        while not run.has_ended():
            for phase in Phase:
                if phase not in begun and phases.has_begun(phase):
                    begun[phase] = time.monotonic()
                if phase in begun and phase not in found and phases.is_over(phase):
                    found[phase] = time.monotonic() - begun[phase]
            time.sleep(0.001)
            if prepare and Phase.preparation in found:
                del found[Phase.start_up]  # it had data preparation in it
                started.kill("launcher")
                break
        server.wait(LIMIT_SECONDS)
        started.close()
    return found
