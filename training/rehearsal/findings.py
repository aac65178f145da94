"""What a check has found. No torch."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One mistake, named."""

    check: str
    """Which check found it."""
    message: str
    """For people: what is wrong, with the ranks, the collective or the parameter."""
    ranks: tuple[int, ...] = field(default=())
    """Those at fault, as far as that can be told; else those concerned."""
    parameter: str = ""
    """Canonical name, of mistakes of state."""
    operation: str = ""
    """Of mistakes of programs."""
