"""What follows from how a start of a run ended: start again, perhaps without a node, or stop and say why. Pure.

Whoever starts runs by itself asks here; a scheduler is only one of those who may.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.errors import ExitCode

_AGAIN = {
    ExitCode.STOPPED: "the run was told to stop, and has saved",
    ExitCode.PEER_LOST: "a process was killed or a node was lost",
    ExitCode.HANG: "a rank made no progress",
    ExitCode.STORAGE: "the storage failed",
    ExitCode.SILENT_CORRUPTION: "a rank computed something else than its peers",
    ExitCode.PREFLIGHT: "nodes failed their checks",
    ExitCode.FAILED: "an unexpected error (a device's, a library's or ours)",
}
"""Ends that another start may get past, in words."""
_PERSON = {
    ExitCode.BAD_CONFIG: "the configuration cannot work, however often it is started",
    ExitCode.GATE_BLOCKED: "a gate blocks: a person decides how to go on",
    ExitCode.NON_FINITE: "the numbers diverged: a person has to look",
    ExitCode.CORRUPT_CHECKPOINT: "no checkpoint is whole: a person has to look",
    ExitCode.DATA: "the prepared data is missing or damaged",
    ExitCode.RUN_IN_USE: "another job works in this run directory",
    ExitCode.ENDPOINT: "the endpoint of another model refuses, or its budget is spent: a person has to look",
    ExitCode.NO_PROGRESS: "several starts in a row failed at the same step",
}
"""Ends that would only come again."""
BLAMES_A_NODE = frozenset({ExitCode.HANG, ExitCode.SILENT_CORRUPTION, ExitCode.PREFLIGHT})
"""Ends that can be one node's fault."""
_NO_FAULT_OF_THE_STEP = frozenset({ExitCode.DONE, ExitCode.STOPPED})
"""Told to stop from outside. So is a start that bad nodes kept from beginning: the next one goes without them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """How one start of a run ended."""

    exit_code: ExitCode | None
    """None if it was lost together with whoever watched it."""
    step: int
    """Last step of the run that was done when it ended."""
    blamed: tuple[str, ...] = ()
    """Nodes that were at fault; the next start goes without them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How patient to be."""

    max_requeues: int
    """Starts after the first one."""
    no_progress_starts: int
    """Starts in a row that may fail at the same step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Requeue:
    """Start again."""

    exclude: tuple[str, ...]
    """Nodes to leave out from now on."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Do not start again."""

    exit_code: ExitCode
    reason: str


def decide(attempts: Sequence[Attempt], *, blamed: Sequence[str], restarts: int, limits: Limits) -> Requeue | Stop:
    """Return what to do after the last of some attempts.

    Args:
        attempts: all of the run that are known, in order; the last one has just ended.
        blamed: nodes that the last one names as the cause; they count only where an end can be one node's fault.
        restarts: how often this job was started again already.
        limits: how patient to be.
    """
    code = attempts[-1].exit_code
    if code is None:
        code = ExitCode.PEER_LOST
    if code is ExitCode.DONE:
        return Stop(exit_code=code, reason="the run is done")
    if code in _PERSON:
        return Stop(exit_code=code, reason=_PERSON[code])
    stuck = _starts_without_progress(attempts)
    if stuck >= limits.no_progress_starts:
        return Stop(
            exit_code=ExitCode.NO_PROGRESS,
            reason=f"{stuck} starts in a row failed at step {attempts[-1].step}, the last one because {_AGAIN[code]}; "
            "starting again would fail again",
        )
    if restarts >= limits.max_requeues:
        return Stop(exit_code=code, reason=f"{_AGAIN[code]}, and {restarts} restarts are as many as allowed")
    exclude = tuple(dict.fromkeys(blamed)) if code in BLAMES_A_NODE else ()
    without = f"; from now on without {', '.join(exclude)}" if exclude else ""
    return Requeue(exclude=exclude, reason=f"{_AGAIN[code]}{without}")


def _starts_without_progress(attempts: Sequence[Attempt]) -> int:
    """Return how many of the last attempts failed at the step at which the last one did, or before any step."""
    count = 0
    for attempt in reversed(attempts):
        checked_out = attempt.exit_code is ExitCode.PREFLIGHT and bool(attempt.blamed)
        if checked_out or attempt.exit_code in _NO_FAULT_OF_THE_STEP or attempt.step != attempts[-1].step:
            break
        count += 1
    return count
