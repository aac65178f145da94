"""The run that is drilled, and everything that must be as in the run that nobody disturbed.

Two training stages with different layouts (ZeRO-3, then pipeline over ZeRO-3), a checkpoint after every step.
"""

import re
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.drills.starts import ForkServer
from tests.integration.reading import NUMBERS, contents, ledger, records
from tests.integration.running import SMOKE
from training.config.load import compose
from training.config.run_directory import create
from training.errors import CorruptCheckpoint

STAGES = ("pretrain", "anneal")
WORLD_SIZE = 2
LIMIT_SECONDS = 120
"""For anything that takes seconds on a quiet machine: after that it hangs."""
KEEP_LAST = 2
_TOKENS_PER_STEP = 8 * 64
_COMMITTED = re.compile(r"step-(\d{8})")


@dataclass(kw_only=True, slots=True)
class Findings:
    """What went wrong, one sentence each; three empty lists are the aim."""

    lost_steps: list[str] = field(default_factory=list)
    """A committed step was gone, or the next start did not continue from it."""
    differences: list[str] = field(default_factory=list)
    """A bit differs from the undisturbed run, or files lie about that it does not have."""
    retries: list[str] = field(default_factory=list)
    """A start that nobody killed did not come to its end: a person would have had to look."""

    def all(self) -> list[str]:
        """Return everything."""
        return [*self.lost_steps, *self.differences, *self.retries]

    def add(self, other: "Findings") -> None:
        """Take over another's."""
        self.lost_steps += other.lost_steps
        self.differences += other.differences
        self.retries += other.retries


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The run that nobody disturbed. It keeps all its checkpoints."""

    directory: Path
    stage_steps: tuple[int, ...]
    steps: dict[int, tuple[Any, ...]]
    """Numbers of every step: loss, gradient norm, tokens, which samples…"""
    checkpoints: dict[int, dict[str, Any]]
    """Contents of the checkpoint of every step."""
    start_seconds: float
    """From a start to the end of its first step."""
    save_seconds: float
    """Of a save, the median."""
    step_seconds: float
    """From a step to the next, the median."""

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """The last step of every training stage."""
        return tuple(sum(self.stage_steps[: index + 1]) for index in range(len(self.stage_steps)))


def conclude(folder: Path, *, is_wrong: bool) -> int:
    """Return a drill's exit code; its runs are kept if something went wrong."""
    if is_wrong:
        print(f"the runs are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def make_run(
    root: Path,
    stage_steps: Sequence[int],
    *,
    keep_last: int = KEEP_LAST,
    save_every_steps: int = 1,
    more: Sequence[str] = (),
) -> Path:
    """Return a new run directory under a root, with its config frozen inside; prepared data is shared."""
    overrides = overrides_of(root, stage_steps, keep_last=keep_last, save_every_steps=save_every_steps, more=more)
    return create(compose(overrides), overrides)


def overrides_of(
    root: Path,
    stage_steps: Sequence[int],
    *,
    keep_last: int = KEEP_LAST,
    save_every_steps: int = 1,
    more: Sequence[str] = (),
) -> list[str]:
    """Return the overrides that make the drilled run."""
    return [
        *SMOKE,
        f"data.prepared_root={root / 'prepared'}",
        f"run.root={root / 'runs'}",
        f"checkpoint.every_steps={save_every_steps}",
        "checkpoint.max_stall_seconds=600",  # a checkpoint of every step is expected, however busy the machine is
        f"checkpoint.keep_last={keep_last}",
        *(f"stages.{name}.tokens={steps * _TOKENS_PER_STEP}" for name, steps in zip(STAGES, stage_steps, strict=True)),
        *more,
    ]


def make_reference(server: ForkServer, root: Path, stage_steps: Sequence[int]) -> Reference:
    """Return the undisturbed run, done. It is run twice: the first one prepares the data, and both must be equal."""
    first, _ = _undisturbed(server, root, stage_steps)
    directory, started_at = _undisturbed(server, root, stage_steps)
    steps = records(directory, "step")
    times = [step["time"] for step in steps]
    reference = Reference(
        directory=directory,
        stage_steps=tuple(stage_steps),
        steps={step["step"]: numbers(step) for step in steps},
        checkpoints={step_of(path): contents(path) for path in committed(directory)},
        start_seconds=times[0] - started_at,
        save_seconds=statistics.median(record["seconds"] for record in records(directory, "checkpoint")),
        step_seconds=statistics.median(later - earlier for earlier, later in pairwise(times)),
    )
    assert list(reference.steps) == list(reference.checkpoints) == list(range(1, sum(stage_steps) + 1))
    differing = [*differing_steps(first, reference), *differing_checkpoints(first, reference)]
    assert not differing, f"two undisturbed runs differ, so nothing can be said about disturbed ones: {differing}"
    return reference


def _undisturbed(server: ForkServer, root: Path, stage_steps: Sequence[int]) -> tuple[Path, float]:
    directory = make_run(root, stage_steps, keep_last=10**6)
    started_at = time.time()
    started = server.start(directory, world_size=WORLD_SIZE, output=directory / "output")
    left = server.wait(LIMIT_SECONDS)
    started.close()
    said = (directory / "output").read_text(errors="replace")[-4000:]
    assert not left.processes, f"the undisturbed run hangs: {said}"
    assert left.exit_codes[started.launcher] == 0, f"the undisturbed run failed: {said}"
    return directory, started_at


def committed(run: Path) -> list[Path]:
    """Return the committed checkpoints of a run, the oldest first."""
    folder = run / "checkpoints"
    return sorted(path for path in folder.glob("step-*") if _COMMITTED.fullmatch(path.name))


def step_of(checkpoint: Path) -> int:
    """Return the step of a committed checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def numbers(step: dict[str, Any]) -> tuple[Any, ...]:
    """Return the fields of a step record that repeat bit by bit."""
    return tuple(step[name] for name in NUMBERS)


def differing_steps(run: Path, reference: Reference) -> Iterator[str]:
    """Yield a sentence per step record, of whatever attempt, that is not as in the reference."""
    for step in records(run, "step"):
        expected = reference.steps.get(step["step"])
        if numbers(step) != expected:
            yield f"{run.name}: step {step['step']} of attempt {step['attempt']}: {numbers(step)}, not {expected}"


def differing_checkpoints(run: Path, reference: Reference) -> Iterator[str]:
    """Yield a sentence per committed checkpoint that is not whole, or not as the reference's of the same step."""
    for path in committed(run):
        try:
            found = contents(path)
        except CorruptCheckpoint as error:
            yield f"{run.name}: {error}"
            continue
        expected = reference.checkpoints[step_of(path)]
        differing = [part for part in expected if found[part] != expected[part]]
        if differing:
            yield f"{run.name}: {path.name} differs in {', '.join(differing)}"


def differences_at_end(run: Path, reference: Reference, *, save_every_steps: int = 1) -> Iterator[str]:
    """Yield a sentence per thing in which a run that has ended is not as the reference.

    Args:
        save_every_steps: if not 1, a stop may have saved any step, so only the ends of training stages must be there.
    """
    yield from differing_steps(run, reference)
    yield from differing_checkpoints(run, reference)
    if missing := set(reference.steps) - {step["step"] for step in records(run, "step")}:
        yield f"{run.name}: no record of the steps {sorted(missing)}"
    last = range(reference.stage_ends[-1] - KEEP_LAST + 1, reference.stage_ends[-1] + 1)
    expected = {f"step-{step:08d}" for step in {*reference.stage_ends, *(last if save_every_steps == 1 else ())}}
    found = {path.name for path in (run / "checkpoints").iterdir()}
    torn = {name for name in found if not _COMMITTED.fullmatch(name)}
    if torn or (found != expected if save_every_steps == 1 else not expected <= found):
        yield f"{run.name}: checkpoints has {sorted(found - expected)} too many, {sorted(expected - found)} too few"
    if _outcome(run) != _outcome(reference.directory):
        yield f"{run.name}: the ledger is {_outcome(run)}, not {_outcome(reference.directory)}"


def _outcome(run: Path) -> dict[str, Any]:
    """Return what the ledger says about training stages, their evaluations and gates."""
    return {key: value for key, value in ledger(run).items() if key != "attempt"}
