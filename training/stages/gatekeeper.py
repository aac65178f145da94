"""Asks a training stage's gate: rank 0 decides, from the reports and from what a person said, and tells all ranks."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from training.config.approval import Answer, approval_of
from training.config.gate_checks import baseline_of
from training.config.gate_schema import GateAction, GateConfig
from training.config.schema import RunConfig
from training.engine.process_group import ProcessGroup
from training.errors import AutarkyError, DataError
from training.stages import transitions
from training.stages.ledger import GateOutcome, Ledger, outcome_of


class Decision(Protocol):
    """What is needed of a gate's decision (eval.gates.GateDecision)."""

    @property
    def decision(self) -> GateAction:
        """What follows."""
        ...

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence per condition."""
        ...

    @property
    def numbers(self) -> tuple[dict[str, Any], ...]:
        """Everything the sentences say, as JSON objects."""
        ...


Decide = Callable[[GateConfig, Path, Mapping[str, Path], int], Decision]
"""(gate, report, `compared_with` -> report, look) -> decision; see `eval.evidence.decide_from_reports`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gatekeeper:
    """Every rank has one and calls it alike."""

    config: RunConfig
    run_directory: Path
    processes: ProcessGroup
    decide: Decide

    def ask(self, ledger: Ledger, training_stage: str) -> GateOutcome:
        """Return what a training stage's gate says about its latest evaluation; collective.

        Raises:
            DataError: on every rank: a report or a person's answer cannot be read.
        """
        text = None
        if self.processes.rank == 0:
            try:
                text = json.dumps({"outcome": asdict(self._outcome(ledger, training_stage))})
            except AutarkyError as error:
                text = json.dumps({"error": str(error)})
        told = json.loads(self.processes.broadcast_text(text))
        if "error" in told:
            raise DataError(told["error"])
        return outcome_of(told["outcome"])

    def _outcome(self, ledger: Ledger, training_stage: str) -> GateOutcome:
        entry = ledger.entry(training_stage)
        gate = self.config.stages[training_stage].gate
        assert gate is not None
        assert entry.evaluation is not None
        report, look = self.run_directory / entry.evaluation.path, entry.evaluation.look
        made = self.decide(gate, report, self._baselines(gate, ledger, training_stage), look)
        decision, reasons = made.decision, list(made.reasons)
        if (
            decision is GateAction.more_items
            and entry.gate is not None
            and _items(entry.gate.numbers) == _items(made.numbers)
        ):
            decision = GateAction.block
            reasons.append(f"evaluation {look} found no more items than the one before: there are no more to be had")
        if decision in (GateAction.block, GateAction.ask, GateAction.roll_back):
            approval = approval_of(self.run_directory, training_stage, report)
            if approval is not None:
                decision = GateAction.promote if approval.answer == Answer.approve else GateAction.block
                reasons.append(approval.reason)
        return GateOutcome(decision=decision, reasons=tuple(reasons), numbers=made.numbers, look=look)

    def _baselines(self, gate: GateConfig, ledger: Ledger, training_stage: str) -> dict[str, Path]:
        """Return the reports that the gate compares with, of those evaluations that were made."""
        found = {}
        for condition in gate.conditions.values():
            name = condition.compared_with
            evaluation = None if name is None else baseline_of(self.config, training_stage, name)
            path = None if evaluation is None else transitions.baseline_report(ledger, evaluation)
            if name is not None and path is not None:
                found[name] = self.run_directory / path
        return found


def _items(numbers: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {number["condition"]: number.get("num_items") for number in numbers}
