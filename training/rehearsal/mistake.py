"""A rehearsal with one mistake, and what a finding must say to have named it. No torch."""

from dataclasses import dataclass

from training.rehearsal.findings import Finding
from training.rehearsal.rehearsal import Rehearsal


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """One mistake."""

    rehearsal: Rehearsal
    rank: int
    """Who makes it."""
    words: tuple[str, ...]
    """What its finding has to mention: the collective, the parameter, the sample."""

    def is_named_by(self, finding: Finding) -> bool:
        """Return whether a finding names the rank and the thing at fault."""
        names_rank = self.rank in finding.ranks or f"rank {self.rank} " in finding.message
        return names_rank and all(word in finding.message for word in self.words)
