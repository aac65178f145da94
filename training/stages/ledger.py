"""What a run has done: one entry per training stage, in stages.json, committed at every arrow of the state machine.

A ledger is a value; transitions return a new one, `commit` makes it the truth. After a kill at any moment the file is
the last committed ledger or the one being committed, never a mixture. Only one rank opens and commits. No torch.

    pending -> training -> trained -> evaluated -> promoted | blocked        (trained -> promoted without an evaluation)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from training.config.run_directory import LEDGER_NAME
from training.durable_files import write_durably
from training.errors import ConfigError, CorruptCheckpoint, StorageError
from training.plain_files import parse_json, read_text, typed

_VERSION = 1


class RunState(StrEnum):
    """What became of the run so far."""

    running = "running"
    done = "done"
    blocked = "blocked"
    failed = "failed"
    stopped = "stopped"


class StageStatus(StrEnum):
    """How far a training stage is."""

    pending = "pending"
    training = "training"
    trained = "trained"
    evaluated = "evaluated"
    promoted = "promoted"
    blocked = "blocked"


class IllegalTransition(ValueError):
    """A ledger that cannot come about: a bug of the caller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """An evaluation that was made."""

    path: str
    """Its report, relative to the run directory."""
    metrics: dict[str, float]
    look: int = 1
    """Which one of its training stage it is: a gate that cannot decide has it made again, with more items."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateOutcome:
    """A gate that was asked."""

    decision: str
    """promote, block, ask or roll_back; more_items while a larger evaluation is being made."""
    reasons: tuple[str, ...]
    """One sentence per condition, and that of a person who was asked."""
    numbers: tuple[dict[str, Any], ...] = ()
    """One object per condition: verdict, value, bounds, limit, items; see `eval.gates.GateDecision.numbers`."""
    look: int = 1
    """Which evaluation of the training stage it judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEntry:
    """One training stage.

    Raises:
        IllegalTransition: the status says more than the entry shows.
    """

    name: str
    status: StageStatus = StageStatus.pending
    checkpoint: str | None = None
    """The checkpoint at its end, relative to the run directory; null until it is trained."""
    evaluation: Evaluation | None = None
    gate: GateOutcome | None = None

    def __post_init__(self) -> None:
        in_training = self.status in (StageStatus.pending, StageStatus.training)
        if in_training == (self.checkpoint is not None):
            raise IllegalTransition(f"training stage {self.name}: {self.status} with checkpoint {self.checkpoint}")
        if self.evaluation is None and self.status is StageStatus.evaluated:
            raise IllegalTransition(f"training stage {self.name}: evaluated without an evaluation")
        if self.gate is None and self.status is StageStatus.blocked:
            raise IllegalTransition(f"training stage {self.name}: blocked without a gate")
        if self.gate is not None and self.evaluation is None:
            raise IllegalTransition(f"training stage {self.name}: a gate decided without an evaluation")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """The state of a whole run.

    Raises:
        IllegalTransition: a training stage is ahead of one before it, or the run is done with stages left to do.
    """

    stages: tuple[StageEntry, ...]
    state: RunState = RunState.running
    attempt: int = -1
    """How often the run directory was started before this start, so 0 in the first one; -1 before `started`."""
    start_evaluation: Evaluation | None = None
    """Evaluation of the untrained model, if it was made."""
    rolled_back: tuple[StageEntry, ...] = ()
    """What was known of training stages when their gates rolled them back, the latest last."""

    def __post_init__(self) -> None:
        statuses = [entry.status for entry in self.stages]
        behind = [status for status in statuses if status is not StageStatus.promoted]
        if statuses[: len(statuses) - len(behind)] != [StageStatus.promoted] * (len(statuses) - len(behind)):
            raise IllegalTransition(f"a training stage was promoted before an earlier one: {statuses}")
        if any(status is not StageStatus.pending for status in behind[1:]):
            raise IllegalTransition(f"a training stage began before the one before it was promoted: {statuses}")
        if self.state is RunState.done and behind:
            raise IllegalTransition(f"the run is done with training stages left to do: {statuses}")

    @classmethod
    def open(cls, run_directory: Path, stage_names: Sequence[str]) -> Self:
        """Return the committed ledger of a run directory, or a fresh one (not yet committed) if there is none.

        Training stages that were added at the end are pending in it; a run that was done has them left to do.

        Raises:
            ConfigError: the run directory was made with other training stages, or in another order.
            CorruptCheckpoint: the file is not a ledger.
            StorageError: the file cannot be read.
        """
        path = run_directory / LEDGER_NAME
        try:
            text = read_text(path)
        except FileNotFoundError:
            return cls(stages=tuple(StageEntry(name=name) for name in stage_names))
        except ValueError as error:
            raise _no_ledger(path, error) from error
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error}\n  -> mend the storage, then start again") from error
        ledger = cls.from_json(text, path)
        names = [entry.name for entry in ledger.stages]
        if names != list(stage_names[: len(names)]):
            raise ConfigError(
                "stages",
                list(stage_names),
                f"{path} belongs to a run with the training stages {names}",
                "continue with those stages and new ones after them, or start a new run with another run.id",
            )
        added = tuple(StageEntry(name=name) for name in stage_names[len(names) :])
        state = RunState.running if added else ledger.state
        return replace(ledger, stages=(*ledger.stages, *added), state=state)

    @classmethod
    def from_json(cls, text: str, path: Path) -> Self:
        """Return the ledger that `to_json` wrote; `path` is named in the error.

        Raises:
            CorruptCheckpoint: the text is not a ledger of this version.
        """
        try:
            fields = parse_json(text)
            if fields["version"] != _VERSION:
                raise ValueError(f"version {fields['version']}, known is {_VERSION}")
            return cls(
                stages=tuple(_entry(entry) for entry in fields["stages"]),
                state=RunState(fields["state"]),
                attempt=_number(fields["attempt"]),
                start_evaluation=_evaluation(fields["start_evaluation"]),
                rolled_back=tuple(_entry(entry) for entry in fields.get("rolled_back", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise _no_ledger(path, error) from error

    def to_json(self) -> str:
        """Return the ledger as JSON text."""
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    def entry(self, name: str) -> StageEntry:
        """Return the entry of a training stage."""
        return {entry.name: entry for entry in self.stages}[name]


def _entry(fields: Mapping[str, Any]) -> StageEntry:
    gate = fields["gate"]
    return StageEntry(
        name=_text(fields["name"]),
        status=StageStatus(fields["status"]),
        checkpoint=None if fields["checkpoint"] is None else _text(fields["checkpoint"]),
        evaluation=_evaluation(fields["evaluation"]),
        gate=None if gate is None else outcome_of(gate),
    )


def outcome_of(fields: Mapping[str, Any]) -> GateOutcome:
    """Return the outcome of a gate from its JSON object.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    lists = {"reasons": tuple(fields["reasons"]), "numbers": tuple(fields.get("numbers", ()))}
    return typed(GateOutcome, {**fields, **lists})


def _evaluation(fields: Mapping[str, Any] | None) -> Evaluation | None:
    return None if fields is None else typed(Evaluation, fields)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"a {type(value).__name__} where a text belongs")


def _number(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and -1 <= value < 2**31:
        return value
    raise ValueError(f"a {type(value).__name__} where a small number belongs")


def _no_ledger(path: Path, error: Exception) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{path} is not a ledger ({type(error).__name__}: {error}); commits replace the file as a whole, so "
        "something else changed it\n  -> restore it from a backup, or start a new run with another run.id"
    )


def commit(ledger: Ledger, run_directory: Path) -> None:
    """Make a ledger the run's truth: when this returns it survives a power cut.

    Raises:
        StorageError: it could not be written; the ledger committed before still stands.
    """
    write_durably(run_directory / LEDGER_NAME, ledger.to_json())
