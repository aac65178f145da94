"""Mistakes put into a rehearsal on purpose, to show that its checks find and name them. No torch.

`launch.rehearse --plant KIND` shows one on a user's own layout; tests/unit/rehearsal/test_planted.py demands them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.rehearsal.findings import Finding
from training.rehearsal.mistake import Mistake
from training.rehearsal.planted_programs import PROGRAM_MISTAKES
from training.rehearsal.planted_state import STATE_MISTAKES
from training.rehearsal.rehearsal import Rehearsal

MISTAKES: dict[str, Callable[[Rehearsal], Mistake | None]] = {**PROGRAM_MISTAKES, **STATE_MISTAKES}
"""Name -> makes the mistake in a sound rehearsal; None where the layout leaves no room for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A planted mistake and what the checks said."""

    kind: str
    mistake: Mistake
    findings: tuple[Finding, ...]

    @property
    def naming(self) -> Finding | None:
        """Return the finding that names the rank and the thing at fault; None if there is none."""
        return next((finding for finding in self.findings if self.mistake.is_named_by(finding)), None)


def plant(rehearsal: Rehearsal, kind: str) -> Trial | None:
    """Return what the checks find of one mistake; None where the layout leaves no room for it."""
    mistake = MISTAKES[kind](rehearsal)
    if mistake is None:
        return None
    return Trial(kind=kind, mistake=mistake, findings=tuple(mistake.rehearsal.check()))


def plant_all(rehearsal: Rehearsal, kinds: Sequence[str] = tuple(MISTAKES)) -> list[Trial]:
    """Return the trials of all mistakes that the layout has room for."""
    return [trial for kind in kinds if (trial := plant(rehearsal, kind)) is not None]
