"""One rank of a contestant: python -m benchmarks.checkpoint_rank CONTESTANT VARIANT TASK DIRECTORY [override …].

TASK is save or resume; the answer is one line of JSON on stdout. Times of day let the command count from the moment it
started the process.
"""

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.checkpoint_contestant import Build, Contestant
from training.config.load import compose
from training.durable_files import fsync

WARM_UP_STEPS = 1
UNDISTURBED_STEPS = 3
FEWEST_STEPS_AFTER = 4
"""Steps that are watched after a save at least: what still happens on the disk then may slow them."""
CHECKED_STEPS = 2
"""Steps after a resume whose losses must be those of the run that was not interrupted."""
SAVED = "saved"
"""Folder, under the task's, that a resume loads from."""
SPARE = "spare"
"""Folder, under the task's, of checkpoints that nobody loads."""


def main() -> None:
    """Run one task."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout belongs to the answer; what libraries print goes to stderr
    module, variant, task, directory, *overrides = sys.argv[1:]
    build: Build = importlib.import_module(f"benchmarks.checkpoint_{module}").build
    imported = time.time()
    config = compose(overrides)
    contestant = build(config, next(iter(config.stages)), variant)
    built = time.time()
    run = {"save": _save, "resume": _resume}[task]
    answer = {"imported": imported, "built": built, **run(contestant, Path(directory))}
    print(json.dumps(answer), file=answers, flush=True)
    dist.barrier()
    os._exit(0)  # what threads and writing processes still do concerns nobody


def _save(contestant: Contestant, directory: Path) -> Mapping[str, Any]:
    """Save three times: once before a step, once while nothing else happens, once while training goes on."""
    step = 0
    for _ in range(WARM_UP_STEPS):
        contestant.step(step)
        step += 1
    first_stall = _first_save(contestant, directory / SPARE / "first", step)
    step += 1
    quiet = _quiet_save(contestant, directory / SPARE / "second", step)
    undisturbed = []
    for _ in range(UNDISTURBED_STEPS):
        started = time.perf_counter()
        contestant.step(step)
        undisturbed.append(time.perf_counter() - started)
        step += 1

    _calm()
    started = time.perf_counter()
    contestant.save(directory / SAVED, step)
    stall = time.perf_counter() - started
    losses, is_written, write_seconds = [], _all(contestant.is_written()), time.perf_counter() - started
    while not is_written or len(losses) < FEWEST_STEPS_AFTER:
        losses.append(contestant.step(step + len(losses)))
        if not is_written:
            is_written, write_seconds = _all(contestant.is_written()), time.perf_counter() - started
    held_seconds = contestant.held_seconds()
    contestant.finish()
    dist.barrier()
    elapsed = time.perf_counter() - started
    return {
        "first_stall": first_stall,
        "quiet_write_seconds": quiet.written,
        "quiet_durable_seconds": quiet.durable,
        "stall": stall + held_seconds,
        "seconds_until_written": write_seconds,
        "extra_seconds": elapsed - len(losses) * statistics.median(undisturbed),
        "num_steps_after": len(losses),
        "step_seconds": undisturbed,
        "next_step": step,
        "losses": losses[:CHECKED_STEPS],
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class _QuietSave:
    """Seconds from its start."""

    written: float
    durable: float


def _first_save(contestant: Contestant, directory: Path, step: int) -> float:
    """Return how long a save and the step after it stood still for the save."""
    _calm()
    started = time.perf_counter()
    contestant.save(directory, step)
    stall = time.perf_counter() - started
    contestant.step(step)
    stall += contestant.held_seconds()
    contestant.finish()
    dist.barrier()
    return stall


def _quiet_save(contestant: Contestant, directory: Path, step: int) -> _QuietSave:
    """Save while nothing else happens, then bring to disk what the contestant left in memory."""
    _calm()
    started = time.perf_counter()
    contestant.save(directory, step)
    contestant.finish()
    dist.barrier()
    written = time.perf_counter() - started
    if dist.get_rank() == 0:
        for path in sorted(directory.rglob("*")):
            fsync(path)
    dist.barrier()
    return _QuietSave(written=written, durable=time.perf_counter() - started)


def _resume(contestant: Contestant, directory: Path) -> Mapping[str, Any]:
    """Load and go on."""
    step = int((directory / "next-step").read_text())
    contestant.load(directory / SAVED)
    loaded = time.time()
    losses = [contestant.step(step)]
    stepped = time.time()
    losses += [contestant.step(step + number) for number in range(1, CHECKED_STEPS)]
    return {"loaded": loaded, "stepped": stepped, "losses": losses}


def _calm() -> None:
    """Begin together, with nothing left to be written to disk."""
    if dist.get_rank() == 0:
        os.sync()
    dist.barrier()


def _all(ok: bool) -> bool:
    vote = torch.tensor([int(ok)])
    dist.all_reduce(vote, op=dist.ReduceOp.MIN)
    return bool(vote.item())


if __name__ == "__main__":
    main()
