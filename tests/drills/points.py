"""A kill at every point of the save protocol on every rank that passes it: the old commit or the new, never neither.

One run per table. Each row's start gets AUTARKY_FAULT and kills itself in its second save; the next row's start goes on
from whatever that left, so a row that breaks the run also breaks the rows after it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.drills.campaign import DIED_OF_SIGKILL, DrilledRun, Outcome
from tests.drills.drill_run import STAGES, WORLD_SIZE, Reference
from tests.drills.starts import ForkServer
from training.checkpoint.commit import POINTS, RANK_0_ONLY
from training.fault_tolerance.injected import VARIABLE

_COMMITS = "after_rename"
"""From this point of rank 0 on it is the new one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one kill left."""

    training_stage: str
    point: str
    rank: int
    step: int
    """Whose save was hit."""
    newest: int
    """The newest committed step after that."""

    @property
    def commit(self) -> str:
        """Return which commit was there: old, new or neither."""
        return {self.step - 1: "old", self.step: "new"}.get(self.newest, "NEITHER")

    @property
    def is_right(self) -> bool:
        """Whether it is the one that belongs to the point; ranks other than 0 cannot know."""
        if self.rank > 0:
            return self.commit in ("old", "new")
        return self.commit == ("new" if POINTS.index(self.point) >= POINTS.index(_COMMITS) else "old")


def cases() -> Iterator[tuple[str, int]]:
    """Yield (point, rank), in the order of the protocol."""
    for point in POINTS:
        for rank in range(1 if point in RANK_0_ONLY else WORLD_SIZE):
            yield point, rank


def run_points(
    server: ForkServer, reference: Reference, root: Path, *, training_stages: Sequence[str] = STAGES
) -> tuple[list[Row], Outcome]:
    """Return a row per training stage, point and rank, and what became of the run they were killed in."""
    run = DrilledRun(server, reference, root)
    rows: list[Row] = []
    for training_stage in training_stages:
        end = reference.stage_ends[STAGES.index(training_stage)]
        first = end - reference.stage_steps[STAGES.index(training_stage)]
        for point, rank in cases():
            step = max(first, *run.steps, 0) + 2
            assert step < end, "the training stages of the drill are too short for its table"
            row = _hit(run, Row(training_stage=training_stage, point=point, rank=rank, step=step, newest=step))
            if row is None:
                return rows, Outcome(findings=run.findings, num_starts=run.num_starts)
            rows.append(row)
    run.finish()
    return rows, Outcome(findings=run.findings, num_starts=run.num_starts)


def _hit(run: DrilledRun, planned: Row) -> Row | None:
    """Return the row as it turned out, None if the run cannot be used any more."""
    fault = f"{planned.point}:{planned.rank}:{planned.step}"
    started, _ = run.start({VARIABLE: fault})
    left = run.end(seen=[])
    if left is None:
        return None
    if left.exit_codes.get(started.ranks[planned.rank]) != DIED_OF_SIGKILL:
        run.findings.retries.append(f"{VARIABLE}={fault} did not kill: {left.exit_codes}; {run.words()}")
        return None
    row = Row(
        training_stage=planned.training_stage,
        point=planned.point,
        rank=planned.rank,
        step=planned.step,
        newest=max(run.steps, default=0),
    )
    if not row.is_right:
        run.findings.lost_steps.append(f"{VARIABLE}={fault} left the commit of step {row.newest}: {row.commit}")
    return row


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text: a line per training stage and point, a column per rank."""
    lines = [f"  {'training stage':<15} {'killed at':<18} " + " ".join(f"rank {rank}" for rank in range(WORLD_SIZE))]
    for training_stage in dict.fromkeys(row.training_stage for row in rows):
        for point in POINTS:
            found = {row.rank: row.commit for row in rows if (row.training_stage, row.point) == (training_stage, point)}
            cells = " ".join(f"{found.get(rank, '-'):<6}" for rank in range(WORLD_SIZE))
            lines.append(f"  {training_stage:<15} {point:<18} {cells}".rstrip())
    return "\n".join(lines)
