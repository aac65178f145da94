"""The phases of a run in which it is told to stop, seen from outside: whether one has begun, whether it is over."""

import time
from enum import StrEnum
from pathlib import Path

from tests.drills.drill_run import STAGES
from tests.drills.moments import Aim, Place, Watch
from tests.integration.reading import ledger


class Phase(StrEnum):
    """What all ranks are doing. Start-up includes the rendezvous, not the imports: those are forked."""

    start_up = "start-up"
    preparation = "data preparation"
    build = "build, load"
    first_evaluation = "first evaluation"
    accumulation = "accumulation"
    save = "save in flight"
    evaluation = "evaluation"
    between_stages = "between stages"


class PhaseWatch:
    """Looks at one start of a run directory, from before it.

    Args:
        prepared_root: where the run's data is prepared.
        watch: of the same start.
    """

    def __init__(self, run: Path, prepared_root: Path, watch: Watch) -> None:
        self.watch = watch
        self._run = run
        self._prepared_root = prepared_root
        self._attempt_before = ledger(run).get("attempt", -1)
        self._started_at = time.time()

    def has_begun(self, phase: Phase, count: int = 1) -> bool:
        """Return whether the ranks have reached a phase: after `count` steps, in the `count`-th save of this start."""
        match phase:
            case Phase.start_up:
                return True
            case Phase.preparation:
                return any(self._prepared_root.glob(".preparing-*"))
            case Phase.build:
                return self._is_counted()
            case Phase.first_evaluation:
                return self._has_engine() and ledger(self._run)["start_evaluation"] is None
            case Phase.accumulation:
                return sum(record["kind"] == "step" for record in self.watch.look()) >= count
            case Phase.save:
                return self.watch.has_come(Aim(victim="", place=Place.save, count=count, delay_seconds=0))
            case Phase.evaluation:
                return self._has_engine() and "trained" in self._statuses()
            case Phase.between_stages:
                statuses = self._statuses()
                return self._is_counted() and ("evaluated" in statuses or statuses == ["promoted", "pending"])

    def is_over(self, phase: Phase) -> bool:
        """Return whether a phase that has begun has ended."""
        match phase:
            case Phase.start_up | Phase.preparation:
                return self._is_counted()
            case Phase.build:
                return self._has_engine() and (not self._has_checkpoint() or self._has_begun_training())
            case Phase.first_evaluation:
                return ledger(self._run)["start_evaluation"] is not None
            case Phase.accumulation:
                return False
            case Phase.save:
                return self.watch.place() is not Place.save
            case Phase.evaluation:
                return "trained" not in self._statuses()
            case Phase.between_stages:
                return self._has_begun_training(STAGES[1])

    def _is_counted(self) -> bool:
        return ledger(self._run).get("attempt", -1) > self._attempt_before

    def _has_engine(self) -> bool:
        """Return whether an engine was built: then its DeepSpeed dictionary is written."""
        written = (path.stat().st_mtime for path in (self._run / "deepspeed").glob("*.json"))
        return self._is_counted() and any(time_written > self._started_at for time_written in written)

    def _has_checkpoint(self) -> bool:
        return any((self._run / "checkpoints").glob("step-*"))

    def _has_begun_training(self, name: str | None = None) -> bool:
        return any(
            record["kind"] == "stage" and record["event"] == "begin" and name in (None, record["stage"])
            for record in self.watch.look()
        )

    def _statuses(self) -> list[str]:
        return [entry["status"] for entry in ledger(self._run).get("stages", [])]
