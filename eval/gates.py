"""Whether a training stage's evaluation lets the next one start. Pure: numbers in, decision and sentences out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from training.config.schema import GateConfig

_METRIC = "bits_per_byte"
_LABEL = "held-out bits per byte"


@dataclass(frozen=True, kw_only=True, slots=True)
class GateDecision:
    """Outcome of a gate."""

    promoted: bool
    reasons: tuple[str, ...]
    """One sentence per condition, with the numbers compared."""

    @property
    def decision(self) -> str:
        """The word that records and ledger use: promote or block."""
        return "promote" if self.promoted else "block"


def decide(gate: GateConfig, metrics: Mapping[str, float], previous: Mapping[str, float] | None) -> GateDecision:
    """Return whether all conditions of a gate are met; a lower `bits_per_byte` never turns promote into block.

    Args:
        gate: the conditions; none promotes.
        metrics: numbers of the training stage that has just been evaluated.
        previous: numbers of the training stage before (of the untrained model for the first one), if there are any.
    """
    value = metrics.get(_METRIC)
    if value is not None and not math.isfinite(value):
        return GateDecision(promoted=False, reasons=(f"{_LABEL} is {value}, which never promotes: not met",))
    conditions: list[tuple[bool, str]] = []
    if gate.max_bits_per_byte is not None:
        conditions.append(_at_most(value, gate.max_bits_per_byte, "threshold"))
    if gate.max_increase_over_previous is not None:
        conditions.append(_no_increase(value, previous, gate.max_increase_over_previous))
    if not conditions:
        return GateDecision(promoted=True, reasons=("the gate has no condition: nothing was asked",))
    return GateDecision(promoted=all(met for met, _ in conditions), reasons=tuple(reason for _, reason in conditions))


def _no_increase(value: float | None, previous: Mapping[str, float] | None, allowed: float) -> tuple[bool, str]:
    """Return the condition that bits per byte did not rise by more than `allowed`, and its sentence."""
    before = None if previous is None else previous.get(_METRIC)
    if before is None:
        return False, f"no earlier {_LABEL} to compare with: not met"
    if not math.isfinite(before):
        return False, f"the earlier {_LABEL} is {before}, which nothing can be compared with: not met"
    return _at_most(value, before + allowed, f"previous {before:.6g} + {allowed:.6g} allowed")


def _at_most(value: float | None, limit: float, what: str) -> tuple[bool, str]:
    """Return the condition `value <= limit` and its sentence."""
    if value is None:
        return False, f"{_LABEL} was not measured, {limit:.6g} ({what}) was asked: not met"
    met = value <= limit
    shown_value, shown_limit = _distinct(value, limit)
    return met, f"{_LABEL} {shown_value} {'<=' if met else '>'} {shown_limit} ({what}): {'met' if met else 'not met'}"


def _distinct(a: float, b: float) -> tuple[str, str]:
    """Return both numbers with as few digits, from 4 on, as tell them apart."""
    digits = next((d for d in range(4, 17) if float(f"{a:.{d}g}") != float(f"{b:.{d}g}") or a == b), 17)
    return f"{a:.{digits}g}", f"{b:.{digits}g}"
