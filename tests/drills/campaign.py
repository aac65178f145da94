"""One run directory, killed at random moments and started again until it is done, then compared with the reference."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.drills.drill_run import (
    KEEP_LAST,
    LIMIT_SECONDS,
    WORLD_SIZE,
    Findings,
    Reference,
    committed,
    differences_at_end,
    differing_checkpoints,
    make_run,
    step_of,
)
from tests.drills.moments import Place, Watch, draw_aim, wait_for
from tests.drills.starts import ForkServer, Left, Started
from tests.integration.reading import ledger

DIED_OF_SIGKILL = -9


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """One kill that hit."""

    victim: str
    aimed: Place
    hit: Place
    survivors: tuple[int, ...]
    """How the other ranks ended: exit codes."""


class DrilledRun:
    """A run directory from start to start, checked after each."""

    def __init__(
        self,
        server: ForkServer,
        reference: Reference,
        root: Path,
        *,
        save_every_steps: int = 1,
        overrides: Sequence[str] = (),
        expected: frozenset[str] = frozenset({"restart"}),
    ) -> None:
        self.directory = make_run(root, reference.stage_steps, save_every_steps=save_every_steps, more=overrides)
        self._save_every_steps = save_every_steps
        self._expected = expected
        """Incidents that belong to what is done to the run."""
        self.findings = Findings()
        self.num_starts = 0
        self._server = server
        self._reference = reference
        self._watch: Watch | None = None
        self._started: Started | None = None
        self._newest_at_start: int | None = None

    @property
    def steps(self) -> list[int]:
        """The steps whose checkpoints are committed now."""
        return [step_of(path) for path in committed(self.directory)]

    @property
    def is_done(self) -> bool:
        """Whether the ledger says so."""
        return ledger(self.directory).get("state") == "done"

    def start(self, environment: dict[str, str] | None = None) -> tuple[Started, Watch]:
        """Start the ranks, continuing what is there, and return them with a watch on what they do."""
        self.num_starts += 1
        self._newest_at_start = max(self.steps, default=None)
        self._watch = Watch(self.directory)
        self._started = self._server.start(
            self.directory, world_size=WORLD_SIZE, output=self.directory / "output", environment=environment
        )
        return self._started, self._watch

    def has_ended(self) -> bool:
        """Return whether no process of the start lives any more."""
        return not self._server.wait(0).processes

    def end(self, *, seen: list[int]) -> Left | None:
        """Wait for the last process and check what is left; None if the start hangs.

        Args:
            seen: committed steps as they were at some moment of this start, such as before a kill.
        """
        assert self._started is not None
        assert self._watch is not None
        left = self._server.wait(LIMIT_SECONDS)
        if left.processes:
            self.findings.retries.append(f"{self._name()}: hangs; {self.words()}")
            self._server.kill_all()
        self._started.close()
        self.findings.lost_steps += self._lost(seen)
        self.findings.lost_steps += self._not_continued(self._watch.look())
        self.findings.differences += differing_checkpoints(self.directory, self._reference)
        self.findings.differences += [
            f"{self._name()}: {record['what']}: {record['message']}"
            for record in self._watch.records
            if record["kind"] == "incident" and record["what"] not in self._expected
        ]
        return None if left.processes else left

    def finish(self) -> None:
        """Let the run come to its end, if it has not, and compare it with the reference."""
        if not self.is_done:
            started, _ = self.start()
            left = self.end(seen=self.steps)
            if left is None or left.exit_codes[started.launcher]:
                self.findings.retries.append(f"{self._name()}: failed although nobody killed it; {self.words()}")
        if not self.is_done:
            self.findings.differences.append(f"{self.directory.name}: is not done")
        self.findings.differences += differences_at_end(
            self.directory, self._reference, save_every_steps=self._save_every_steps
        )

    def words(self) -> str:
        """Return the end of what the ranks said."""
        return (self.directory / "output").read_text(errors="replace")[-2000:]

    def _name(self) -> str:
        return f"{self.directory.name}, start {self.num_starts}"

    def _lost(self, seen: list[int]) -> Iterator[str]:
        """Yield a sentence per committed step that is gone without two newer ones in its place."""
        now = self.steps
        for step in {*seen, *([self._newest_at_start] if self._newest_at_start else [])} - {*now}:
            if step in self._reference.stage_ends or sum(newer > step for newer in now) < KEEP_LAST:
                yield f"{self._name()}: step {step} was committed and is gone; there are {now}"

    def _not_continued(self, records: list[dict[str, Any]]) -> Iterator[str]:
        """Yield a sentence if the start did not continue from the newest committed step."""
        newest = self._newest_at_start or 0
        for record in records:
            is_restart = record["kind"] == "incident" and record["what"] == "restart"
            if is_restart and f"continues from step-{newest:08d}" not in record["message"]:
                yield f"{self._name()}: {record['message']}, but step {newest} was committed"
        first = next((record["step"] for record in records if record["kind"] == "step"), newest + 1)
        if first != newest + 1:
            yield f"{self._name()}: began at step {first}, but step {newest} was committed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one run."""

    kills: list[Kill] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    num_starts: int = 0


def run_campaign(
    server: ForkServer, reference: Reference, root: Path, *, draw: random.Random, max_kills: int
) -> Outcome:
    """Kill one run until it is done or has been killed often enough; then let it end and compare it."""
    run = DrilledRun(server, reference, root)
    kills: list[Kill] = []
    while len(kills) < max_kills and not run.is_done and not run.findings.retries:
        if kill := _start_and_kill(run, reference, draw):
            kills.append(kill)
    if not run.findings.retries:
        run.finish()
    return Outcome(kills=kills, findings=run.findings, num_starts=run.num_starts)


def _start_and_kill(run: DrilledRun, reference: Reference, draw: random.Random) -> Kill | None:
    """Start a run and kill it at a random moment; None if it ended by itself before."""
    near = _next_stage_is_near(run, reference)
    started, watch = run.start()
    aim = draw_aim(draw, reference, victims=started.victims, next_stage_is_near=near)
    has_come = wait_for(aim, watch, has_ended=run.has_ended, limit_seconds=LIMIT_SECONDS)
    seen, before = run.steps, watch.place()
    was_there = has_come and not run.has_ended() and started.kill(aim.victim)
    after = watch.place()
    left = run.end(seen=seen)
    if left is None:
        return None
    codes = left.exit_codes
    survivors = tuple(codes[pid] for pid in started.ranks if pid != started.pid_of(aim.victim) and pid in codes)
    if was_there and codes.get(started.pid_of(aim.victim)) == DIED_OF_SIGKILL:
        if aim.victim == "launcher" and any(code != DIED_OF_SIGKILL for code in survivors):
            run.findings.differences.append(f"{run.directory.name}: a rank outlived its launcher: {survivors}")
        hit = after if Place.save in (before, after) else before
        return Kill(victim=aim.victim, aimed=aim.place, hit=hit, survivors=survivors)
    if not run.is_done:
        run.findings.retries.append(f"{run.directory.name}: ended by itself with {codes}; {aim}; {run.words()}")
    return None


def _next_stage_is_near(run: DrilledRun, reference: Reference) -> bool:
    """Return whether the end of a training stage, and its evaluation, comes after at most two more steps."""
    entries = ledger(run.directory).get("stages", [])
    newest = max(run.steps, default=0)
    return any(
        end - 2 <= newest <= end and entry["status"] in ("training", "trained")
        for end, entry in zip(reference.stage_ends, entries, strict=False)
    )
