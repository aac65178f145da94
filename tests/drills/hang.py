"""Let ranks hang, see who is blamed and how soon, and see that the run then goes on to the same bits.

    python -m tests.drills.hang --count 40 --seed 0

Every second hang is a rank that is stopped (SIGSTOP) at a random moment, rank 0 with the job's store among them; in the
others a rank waits for ever in a section of its own, so that its peers wait for it somewhere else. Exit code 1 if the
wrong rank was blamed, a hang was seen later than two seconds after its limit, a process was left five seconds after
that, or a bit differs in the end.
"""

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.drills.campaign import DrilledRun
from tests.drills.drill_run import LIMIT_SECONDS, WORLD_SIZE, Reference, conclude, make_reference
from tests.drills.kill import verdict
from tests.drills.moments import Aim, Place, wait_for
from tests.drills.starts import ForkServer, Started
from training.errors import ExitCode
from training.fault_tolerance.injected import STALL_VARIABLE

STAGE_STEPS = (24, 24)
SEEN_AFTER_SECONDS = 2.0
GONE_AFTER_SECONDS = 5.0
HANGS_PER_RUN = 12
LIMIT = 4.0
"""Of every section but the first step of an engine, in seconds: many times what it takes; the drill waits for it."""
LIMITS = {
    **dict.fromkeys(("prepare", "build", "load", "data", "step", "save", "evaluation", "between"), LIMIT),
    "first_step": 2 * LIMIT,
}
OVERRIDES = [f"fault_tolerance.hang.{name}_seconds={seconds}" for name, seconds in LIMITS.items()]
SECTIONS = ("data", "step", "save", "evaluation", "between", "build", "load", "prepare")
FROZEN_IN = (Place.training, Place.save, Place.training, Place.evaluation)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hang:
    """One hang, and what came of it."""

    fault: str
    """freeze, or stall and the section."""
    victim: int
    blamed: int | None
    """None if nobody was."""
    section: str
    """Where the victim was, in the words of the verdict."""
    limit_seconds: float
    """That ran out."""
    seen_seconds: float
    """From the fault until the verdict lay in the run directory."""
    gone_seconds: float
    """Until no process of the job lived."""
    has_stacks: bool
    """Whether the other rank, and a victim that could, wrote its stacks."""

    @property
    def is_right(self) -> bool:
        """Whether the right rank was named in time and nothing outlived it."""
        late = self.seen_seconds - self.limit_seconds > SEEN_AFTER_SECONDS
        orphans = self.gone_seconds - self.seen_seconds > GONE_AFTER_SECONDS
        return self.blamed == self.victim and self.has_stacks and not late and not orphans


class HangDrill:
    """A run that hangs again and again, each start once."""

    def __init__(self, server: ForkServer, reference: Reference, root: Path, draw: random.Random) -> None:
        self.run = DrilledRun(server, reference, root, overrides=OVERRIDES, expected=frozenset({"restart", "hang"}))
        self._server = server
        self._reference = reference
        self._draw = draw

    def freeze(self, victim: int, place: Place) -> Hang | None:
        """Stop a rank somewhere; None if the run came to its end before."""
        draw, reference = self._draw, self._reference
        longest = reference.save_seconds if place is Place.save else reference.step_seconds
        aim = Aim(
            victim=f"rank {victim}", place=place, count=draw.randint(1, 3), delay_seconds=draw.uniform(0, longest)
        )
        started, watch = self.run.start()
        if not wait_for(aim, watch, has_ended=self.run.has_ended, limit_seconds=LIMIT_SECONDS):
            return self._ended()
        if self.run.has_ended() or not started.send(aim.victim, signal.SIGSTOP):
            return self._ended()
        return self._observe(f"freeze in {place}", victim, time.monotonic(), started)

    def stall(self, victim: int, section: str, step: int | None = None) -> Hang | None:
        """Let a rank wait for ever in a section, at a step if one is given; None if the run came to its end before."""
        if step is None and section in ("data", "step"):
            step = max(self.run.steps, default=0) + self._draw.randint(2, 4)
        started, at = start_and_stall(self.run, f"{section}:{victim}:{'*' if step is None else step}:inf")
        if at is None:
            return self._ended()
        return self._observe(f"stall in {section}", victim, at, started)

    def _observe(self, fault: str, victim: int, at: float, started: Started) -> Hang | None:
        exit_file = self.run.directory / "exit.json"
        deadline = at + 2 * LIMIT_SECONDS
        while not exit_file.exists() and not self.run.has_ended() and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = time.monotonic() - at
        time.sleep(0.05)  # it is made in two steps
        said = json.loads(exit_file.read_text()) if exit_file.exists() else {"error": "nothing", "exit_code": -1}
        self._server.wait(GONE_AFTER_SECONDS)
        gone = time.monotonic() - at
        left = self.run.end(seen=[])
        if left is None or said["exit_code"] != ExitCode.HANG:
            self.run.findings.retries.append(f"{fault} of rank {victim}: {said}; {self.run.words()}")
            return None
        limit = re.search(r"within (\d+) s", said["error"])
        where = re.search(rf"to blame: rank {victim}\b.*section (\w+)", said["error"])
        logs = self.run.directory / "logs"
        able = [rank for rank in range(WORLD_SIZE) if rank != victim or not fault.startswith("freeze")]
        stacks = [logs / f"rank-{rank:05d}.stacks" for rank in able]
        has_stacks = all(path.exists() and "Current thread" in path.read_text() for path in stacks)
        for path in stacks:
            path.unlink(missing_ok=True)
        return Hang(
            fault=fault,
            victim=victim,
            blamed=said["rank"],
            section=where.group(1) if where else "-",
            limit_seconds=float(limit.group(1)) if limit else 0.0,
            seen_seconds=seen,
            gone_seconds=gone,
            has_stacks=has_stacks,
        )

    def _ended(self) -> None:
        left = self.run.end(seen=[])
        if left is not None and not self.run.is_done:
            self.run.findings.retries.append(f"{self.run.directory.name}: ended by itself: {self.run.words()}")


def start_and_stall(run: DrilledRun, stall: str) -> tuple[Started, float | None]:
    """Start a run with an AUTARKY_STALL; return the start and when the rank stood still, None if it ended before."""
    output = run.directory / "output"

    def moments() -> list[str]:
        said = output.read_text(errors="replace") if output.exists() else ""
        return re.findall(rf"{STALL_VARIABLE} at ([\d.]+)\n", said)

    before = len(moments())
    started, _ = run.start({STALL_VARIABLE: stall})
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(moments()) <= before:
        if run.has_ended() or time.monotonic() > deadline:
            return started, None
        time.sleep(0.01)
    return started, float(moments()[-1])


def drill(
    server: ForkServer,
    reference: Reference,
    root: Path,
    faults: Sequence[Callable[[HangDrill], Hang | None]],
    *,
    seed: int,
    tell: Callable[[Hang], None],
) -> list[str]:
    """Let runs hang by these faults and come to their end; return what went wrong."""
    wrong: list[str] = []
    waiting = list(faults)
    while waiting and not wrong:
        hangs = HangDrill(server, reference, root, random.Random(seed))
        for _ in range(HANGS_PER_RUN):
            if not waiting or hangs.run.is_done or hangs.run.findings.all():
                break
            hang = waiting[0](hangs)
            if hang is None:
                break  # the run was done before: the same fault again in the next one
            waiting.pop(0)
            tell(hang)
            wrong += [] if hang.is_right else [f"WRONG: {hang}"]
        hangs.run.finish()
        seed += 1
        if hangs.run.findings.all():
            wrong.append(verdict(hangs.run.findings))
    return wrong


def freeze(victim: int, place: Place) -> Callable[[HangDrill], Hang | None]:
    """Return the fault of a rank that is stopped."""
    return lambda hangs: hangs.freeze(victim, place)


def stall(victim: int, section: str) -> Callable[[HangDrill], Hang | None]:
    """Return the fault of a rank that waits for ever."""
    return lambda hangs: hangs.stall(victim, section)


def row(hang: Hang) -> str:
    """Return a line of the table."""
    return (
        f"  {hang.fault:<24} rank {hang.victim}  blamed {'-' if hang.blamed is None else hang.blamed}, in "
        f"{hang.section:<10} limit {hang.limit_seconds:4.0f} s  seen {hang.seen_seconds:5.2f} s  "
        f"gone {hang.gone_seconds:5.2f} s  {'right' if hang.is_right else 'WRONG'}"
    )


def main() -> int:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.hang", description="Let ranks hang.")
    parser.add_argument("--count", type=int, default=16, help="hangs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    faults = [
        stall(draw.randrange(WORLD_SIZE), SECTIONS[number // 2 % len(SECTIONS)])
        if number % 2
        else freeze(number // 2 % WORLD_SIZE, draw.choice(FROZEN_IN))
        for number in range(arguments.count)
    ]
    folder = Path(tempfile.mkdtemp(prefix="autarky-hang-"))
    hangs: list[Hang] = []

    def tell(hang: Hang) -> None:
        hangs.append(hang)
        print(row(hang), flush=True)

    with ForkServer() as server:
        reference = make_reference(server, folder, STAGE_STEPS)
        wrong = drill(server, reference, folder, faults, seed=arguments.seed, tell=tell)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    if hangs:
        latest = max(hang.seen_seconds - hang.limit_seconds for hang in hangs)
        right = sum(hang.blamed == hang.victim for hang in hangs)
        print(
            f"{len(hangs)} hangs: {right} blamed right, seen at the latest {latest:.2f} s after the limit, all gone at "
            f"the latest {max(hang.gone_seconds - hang.seen_seconds for hang in hangs):.2f} s after that; "
            f"final state {'differs' if wrong else 'equal bitwise'}"
        )
    return conclude(folder, is_wrong=bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
