"""Where a run is, seen from outside, and the moment at which it is to be killed."""

import contextlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.drills.drill_run import Reference
from tests.integration.reading import ledger


class Place(StrEnum):
    """Where a run is."""

    start = "start-up"
    training = "training"
    save = "inside a save"
    evaluation = "evaluation"
    between_stages = "between stages"


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """Whom to kill, and when."""

    victim: str
    place: Place
    count: int
    """After so many steps, or in the n-th save, of this start; else 0."""
    delay_seconds: float
    """After that."""


class Watch:
    """Looks at a run directory from one start on."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._metrics = run / "metrics.jsonl"
        self._offset = self._metrics.stat().st_size if self._metrics.exists() else 0
        self._attempt_before = ledger(run).get("attempt", -1)
        self._saves: set[str] = set()
        self._stale = set(self._torsos())
        """Torsos that an earlier kill left and nobody has removed yet."""
        self.records: list[dict[str, Any]] = []
        """What this start has recorded, as of the last look."""

    def has_come(self, aim: Aim) -> bool:
        """Return whether the run is where the delay of an aim begins."""
        match aim.place:
            case Place.start:
                return True
            case Place.training:
                return self._num_steps() >= aim.count
            case Place.save:
                self._saves.update(name for name in self._saving() if name.endswith(".tmp"))
                return len(self._saves) >= aim.count
            case _:
                return self.place() is aim.place

    def place(self) -> Place:
        """Return where the run is now."""
        if self._saving():
            return Place.save
        stages = ledger(self._run)
        statuses = [entry["status"] for entry in stages.get("stages", [])]
        if stages.get("attempt", -1) == self._attempt_before:
            return Place.start
        if "trained" in statuses:
            return Place.evaluation
        if "evaluated" in statuses or statuses == ["promoted", "pending"]:
            return Place.between_stages
        return Place.training if self._num_steps() else Place.start

    def look(self) -> list[dict[str, Any]]:
        """Return the whole records of this start."""
        if self._metrics.exists():
            with self._metrics.open("rb") as file:
                file.seek(self._offset)
                lines = file.read().splitlines(keepends=True)
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # being written, or torn for ever
                self._offset += len(line)
                with contextlib.suppress(ValueError):  # a line that a kill or a full disk tore was ended later
                    self.records.append(json.loads(line))
        return self.records

    def _num_steps(self) -> int:
        return sum(record["kind"] == "step" for record in self.look())

    def _saving(self) -> set[str]:
        """Return the work directories of a save or of the removal that follows it."""
        found = set(self._torsos())
        self._stale &= found
        return found - self._stale

    def _torsos(self) -> list[str]:
        folder = self._run / "checkpoints"
        return [path.name for path in folder.iterdir() if path.suffix in (".tmp", ".old")] if folder.is_dir() else []


def draw_aim(draw: random.Random, reference: Reference, *, victims: Sequence[str], next_stage_is_near: bool) -> Aim:
    """Return a random aim: every second one inside a save."""
    place = draw.choice([*[Place.save] * 4, *[Place.training] * 2, Place.start, Place.evaluation])
    if place is Place.evaluation:
        at_the_end = draw.choice([Place.evaluation, Place.between_stages])
        place = at_the_end if next_stage_is_near else Place.training
    count, delay_seconds = {
        Place.start: (0, reference.start_seconds),
        Place.training: (draw.randint(1, 8), reference.step_seconds),
        Place.save: (draw.randint(1, 4), reference.save_seconds),
        Place.evaluation: (0, 4 * reference.step_seconds),
        Place.between_stages: (0, 2 * reference.step_seconds),
    }[place]
    return Aim(victim=draw.choice(victims), place=place, count=count, delay_seconds=draw.uniform(0, delay_seconds))


def wait_for(aim: Aim, watch: Watch, *, has_ended: Callable[[], bool], limit_seconds: float) -> bool:
    """Return True at the moment of an aim, False if the start ends, or the limit passes, before it comes."""
    deadline = time.monotonic() + limit_seconds
    while not watch.has_come(aim):
        if has_ended() or time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    time.sleep(aim.delay_seconds)
    return True
