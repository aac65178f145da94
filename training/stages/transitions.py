"""The arrows between ledgers: each returns a new ledger, or raises IllegalTransition where there is none. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from training.config.gate_checks import START
from training.config.gate_schema import GateAction
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


def baseline_report(ledger: Ledger, evaluation: str) -> str | None:
    """Return the report of an earlier evaluation, relative to the run directory; None if it was not made.

    Args:
        ledger: the run's.
        evaluation: a training stage, or START for the untrained model.
    """
    made = ledger.start_evaluation if evaluation == START else ledger.entry(evaluation).evaluation
    return None if made is None else made.path


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


def wants_more_items(ledger: Ledger, name: str) -> bool:
    """Return whether a training stage's gate asked for a larger evaluation, which was not made yet."""
    entry = ledger.entry(name)
    if entry.gate is None or entry.evaluation is None or entry.gate.decision != GateAction.more_items:
        return False
    return entry.gate.look == entry.evaluation.look


def next_look(ledger: Ledger, name: str) -> int:
    """Return the number of a training stage's next evaluation, from 1."""
    evaluation = ledger.entry(name).evaluation
    return 1 if evaluation is None else evaluation.look + 1


def evaluated(ledger: Ledger, name: str, path: str, metrics: Mapping[str, float]) -> Ledger:
    """Return the ledger after a training stage was evaluated, or once more with more items.

    `path` is the report, relative to the run directory.
    """
    entry = _in(ledger, name, StageStatus.trained, StageStatus.evaluated)
    if entry.status is StageStatus.evaluated and not wants_more_items(ledger, name):
        raise IllegalTransition(f"training stage {name} is evaluated, and nobody asked for more items")
    evaluation = Evaluation(path=path, metrics=dict(metrics), look=next_look(ledger, name))
    return _with(ledger, replace(entry, status=StageStatus.evaluated, evaluation=evaluation))


def gated(ledger: Ledger, name: str, outcome: GateOutcome) -> Ledger:
    """Return the ledger after a gate decided.

    Asking a person blocks until that person has decided, rolling back until it is done. With more_items
    the training stage stays evaluated. A blocked one may be decided again.
    """
    entry = _in(ledger, name, StageStatus.evaluated, StageStatus.blocked)
    status = {
        GateAction.promote: StageStatus.promoted,
        GateAction.more_items: StageStatus.evaluated,
    }.get(GateAction(outcome.decision), StageStatus.blocked)
    ledger = _with(ledger, replace(entry, status=status, gate=outcome))
    return replace(ledger, state=RunState.blocked) if status is StageStatus.blocked else ledger


def is_to_be_rolled_back(entry: StageEntry) -> bool:
    """Return whether a training stage's gate rolls it back, and that was not done yet."""
    return (
        entry.status is StageStatus.blocked and entry.gate is not None and entry.gate.decision == GateAction.roll_back
    )


def roll_back_suffix(ledger: Ledger) -> str:
    """Return what the names of the next roll back's checkpoint and reports end with: no two have the same."""
    return f".rolled-back-{len(ledger.rolled_back) + 1}"


def rolled_back(ledger: Ledger, name: str) -> Ledger:
    """Return the ledger after a training stage's checkpoint and reports got the suffix: it is pending, the run blocked.

    What was known of it is kept, with the names that things have now.
    """
    entry = ledger.entry(name)
    if not is_to_be_rolled_back(entry):
        raise IllegalTransition(f"training stage {name} is {entry.status}: its gate did not roll it back")
    suffix = roll_back_suffix(ledger)
    assert entry.evaluation is not None  # a gate has judged it
    report = entry.evaluation.path.replace(f"eval/{name}/", f"eval/{name}{suffix}/", 1)
    left = replace(entry, checkpoint=f"{entry.checkpoint}{suffix}", evaluation=replace(entry.evaluation, path=report))
    ledger = replace(_with(ledger, StageEntry(name=name)), rolled_back=(*ledger.rolled_back, left))
    return replace(ledger, state=RunState.blocked)


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
