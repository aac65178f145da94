"""The arrows between ledgers: each returns a new ledger, or raises IllegalTransition where there is none. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from training.stages.ledger import (
    Evaluation,
    GateOutcome,
    IllegalTransition,
    Ledger,
    RunState,
    StageEntry,
    StageStatus,
)


def current_stage(ledger: Ledger) -> StageEntry | None:
    """Return the first training stage that is not promoted, or None if all are."""
    return next((entry for entry in ledger.stages if entry.status is not StageStatus.promoted), None)


def previous_metrics(ledger: Ledger, name: str) -> dict[str, float] | None:
    """Return what a gate compares with: numbers of the training stage before, of the untrained model for the first.

    None if that evaluation was not made.
    """
    index = ledger.stages.index(ledger.entry(name))
    evaluation = ledger.start_evaluation if index == 0 else ledger.stages[index - 1].evaluation
    return None if evaluation is None else evaluation.metrics


def started(ledger: Ledger) -> Ledger:
    """Return the ledger of a new start of the run directory: the next attempt, running.

    A blocked run may start again (after its gate was changed); a run that is done may not.
    """
    if ledger.state is RunState.done:
        raise IllegalTransition("the run is done: there is nothing to start")
    return replace(ledger, state=RunState.running, attempt=ledger.attempt + 1)


def with_start_evaluation(ledger: Ledger, path: str, metrics: Mapping[str, float]) -> Ledger:
    """Return the ledger after the untrained model was evaluated."""
    first = ledger.stages[0].status
    if ledger.start_evaluation is not None or first not in (StageStatus.pending, StageStatus.training):
        raise IllegalTransition(f"the untrained model was evaluated already, or is trained ({first})")
    return replace(ledger, start_evaluation=Evaluation(path=path, metrics=dict(metrics)))


def begun(ledger: Ledger, name: str) -> Ledger:
    """Return the ledger after a training stage began."""
    entry = _in(ledger, name, StageStatus.pending)
    return _with(ledger, replace(entry, status=StageStatus.training))


def trained(ledger: Ledger, name: str, checkpoint: str) -> Ledger:
    """Return the ledger after a training stage's end was saved in `checkpoint`, relative to the run directory."""
    entry = _in(ledger, name, StageStatus.training)
    return _with(ledger, replace(entry, status=StageStatus.trained, checkpoint=checkpoint))


def evaluated(ledger: Ledger, name: str, path: str, metrics: Mapping[str, float]) -> Ledger:
    """Return the ledger after a training stage was evaluated; `path` is the report, relative to the run directory."""
    entry = _in(ledger, name, StageStatus.trained)
    evaluation = Evaluation(path=path, metrics=dict(metrics))
    return _with(ledger, replace(entry, status=StageStatus.evaluated, evaluation=evaluation))


def gated(ledger: Ledger, name: str, *, promoted: bool, reasons: Sequence[str]) -> Ledger:
    """Return the ledger after a gate decided: the training stage is promoted, or the run is blocked by it.

    A blocked training stage may be decided again.
    """
    entry = _in(ledger, name, StageStatus.evaluated, StageStatus.blocked)
    gate = GateOutcome(decision="promote" if promoted else "block", reasons=tuple(reasons))
    status = StageStatus.promoted if promoted else StageStatus.blocked
    ledger = _with(ledger, replace(entry, status=status, gate=gate))
    return ledger if promoted else replace(ledger, state=RunState.blocked)


def promoted_without_gate(ledger: Ledger, name: str) -> Ledger:
    """Return the ledger after a training stage that has no gate (any more), and perhaps no evaluation."""
    entry = _in(ledger, name, StageStatus.trained, StageStatus.evaluated, StageStatus.blocked)
    return _with(ledger, replace(entry, status=StageStatus.promoted, gate=None))


def rewound(ledger: Ledger, name: str) -> Ledger:
    """Return the ledger of a run whose newest whole checkpoint lies before the end of a training stage.

    If the ledger says that the training stage was trained, it is in training again and what came after is forgotten.
    """
    _running(ledger)
    index = ledger.stages.index(ledger.entry(name))
    if ledger.stages[index].status in (StageStatus.pending, StageStatus.training):
        return ledger
    later = tuple(StageEntry(name=entry.name) for entry in ledger.stages[index + 1 :])
    again = StageEntry(name=name, status=StageStatus.training)
    return replace(ledger, stages=(*ledger.stages[:index], again, *later))


def done(ledger: Ledger) -> Ledger:
    """Return the ledger of a complete run: every training stage is promoted."""
    _running(ledger)
    return replace(ledger, state=RunState.done)


def failed(ledger: Ledger) -> Ledger:
    """Return the ledger of a run that stopped on an error; it may be started again."""
    _running(ledger)
    return replace(ledger, state=RunState.failed)


def stopped(ledger: Ledger) -> Ledger:
    """Return the ledger of a run that was told to stop and has saved; it may be started again."""
    _running(ledger)
    return replace(ledger, state=RunState.stopped)


def _running(ledger: Ledger) -> None:
    if ledger.state is not RunState.running or ledger.attempt < 0:
        raise IllegalTransition(f"the run is {ledger.state} in attempt {ledger.attempt}: start it first")


def _in(ledger: Ledger, name: str, *allowed: StageStatus) -> StageEntry:
    """Return the entry of a training stage that has one of the allowed statuses, in a running ledger."""
    _running(ledger)
    entry = ledger.entry(name)
    if entry.status not in allowed:
        raise IllegalTransition(f"training stage {name} is {entry.status}, not {' or '.join(allowed)}")
    return entry


def _with(ledger: Ledger, changed: StageEntry) -> Ledger:
    return replace(ledger, stages=tuple(changed if e.name == changed.name else e for e in ledger.stages))
