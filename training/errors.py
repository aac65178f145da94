"""Error classes and the exit code each one ends the process with.

`launch/` reads the codes to decide whether a job may be requeued, so a code is part of the public
surface: it never changes its meaning. Messages follow one shape: what was given, why it cannot be, what to do.
"""

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes of every Autarky command (the table in docs/exit_codes.md is generated from this)."""

    DONE = 0
    """All training stages are complete and every gate promoted."""
    FAILED = 1
    """An unexpected error: a bug of ours or of a library. The traceback is in logs/rank-*.log."""
    BAD_CONFIG = 2
    """The configuration cannot work; nothing was started or changed."""
    GATE_BLOCKED = 3
    """A gate blocked the next training stage, or asks a person (launch.gate); the report says which number failed."""
    PEER_LOST = 4
    """Another rank or the launcher died; restart with resume=auto."""
    NON_FINITE = 5
    """Too many steps in a row could not be used (NaN or Inf gradients, loss spikes), or the run went back too often."""
    CORRUPT_CHECKPOINT = 6
    """Checkpoints exist but none is whole, or one does not fit the model."""
    DATA = 7
    """Prepared data is missing, changed or damaged."""
    STORAGE = 8
    """The run directory cannot be written (disk full, read-only, vanished)."""
    RUN_IN_USE = 9
    """Another job holds this run directory, or took it over; nothing was changed."""
    STOPPED = 10
    """SIGTERM or SIGUSR1 asked the run to stop; all ranks saved at the same step. Requeue: resume=auto goes on."""
    HANG = 11
    """A rank made no progress within its section's limit; it is named, all stacks are in logs/. Requeue."""
    NO_PROGRESS = 12
    """Several starts in a row failed at the same step; starting again would fail again. A person has to look."""
    PREFLIGHT = 13
    """A node failed its checks before the start; no training was started."""
    SILENT_CORRUPTION = 14
    """A rank computed or kept something else than its peers. Requeue without the named node."""
    ENDPOINT = 15
    """A model behind an HTTP API gave no usable answer, or its budget is spent; what it answered is kept."""


class AutarkyError(Exception):
    """Base of all errors that a user can act on; printed without a traceback."""

    exit_code: ExitCode = ExitCode.FAILED
    on_every_rank: bool = False
    """Whether all ranks decide alike and raise it at the same point, so that they can still end in order."""


class ConfigError(AutarkyError):
    """The configuration is impossible. `key` is the dotted config path at fault."""

    exit_code = ExitCode.BAD_CONFIG

    def __init__(self, key: str, given: object, reason: str, remedy: str) -> None:
        """Build the one message shape that all config errors share.

        Args:
            key: dotted path, for example ``optimizer.lr``.
            given: the value as the user gave it.
            reason: why it cannot be.
            remedy: what to do, with the nearest value that works where there is one.
        """
        self.key, self.given, self.reason, self.remedy = key, given, reason, remedy
        super().__init__(f"{key}={given}: {reason}\n  -> {remedy}")


class GateBlocked(AutarkyError):
    """A gate did not promote; the run stops before the next training stage."""

    exit_code = ExitCode.GATE_BLOCKED
    on_every_rank = True


class PeerLost(AutarkyError):
    """A collective failed because another process of the job is gone."""

    exit_code = ExitCode.PEER_LOST


class NonFiniteGradients(AutarkyError):
    """More consecutive non-finite steps than `fault_tolerance.max_consecutive_skips`."""

    exit_code = ExitCode.NON_FINITE
    on_every_rank = True


class LossSpike(AutarkyError):
    """The loss stays far above the usual, and `fault_tolerance.recovery` allows nothing more to be done about it."""

    exit_code = ExitCode.NON_FINITE
    on_every_rank = True


class Stopped(AutarkyError):
    """A signal asked the run to stop; it is saved and may be started again."""

    exit_code = ExitCode.STOPPED
    on_every_rank = True


class Hang(AutarkyError):
    """A rank made no progress within the limit of what it was doing."""

    exit_code = ExitCode.HANG


class PreflightFailed(AutarkyError):
    """A node failed its checks before the start."""

    exit_code = ExitCode.PREFLIGHT


class SilentCorruption(AutarkyError):
    """A rank computed or kept something else than its peers; it is named."""

    exit_code = ExitCode.SILENT_CORRUPTION
    on_every_rank = True

    def __init__(self, message: str, *, blamed: Mapping[int, str]) -> None:
        """Build the error.

        Args:
            message: for people.
            blamed: rank -> host of those at fault, for whoever starts the run again without them.
        """
        self.blamed = dict(blamed)
        super().__init__(message)


class CorruptCheckpoint(AutarkyError):
    """A checkpoint is torn, damaged or does not fit; nothing was loaded from it."""

    exit_code = ExitCode.CORRUPT_CHECKPOINT


class DataError(AutarkyError):
    """Prepared data is missing, changed or damaged; the message holds the command that mends it."""

    exit_code = ExitCode.DATA


class StorageError(AutarkyError):
    """A write to the run directory failed; what was committed before is whole."""

    exit_code = ExitCode.STORAGE


class SaveFailed(StorageError):
    """A checkpoint could not be written; all ranks know it, and training may go on and try again."""

    on_every_rank = True


class EvaluationFailed(AutarkyError):
    """A task of an evaluation failed or hung; the model and the run are unharmed, and nothing was measured."""

    on_every_rank = True


class RunInUse(AutarkyError):
    """Another job holds the run directory, or has taken it over."""

    exit_code = ExitCode.RUN_IN_USE


class EndpointError(AutarkyError):
    """A model behind an HTTP API gave no usable answer; all that it did answer is in the journal."""

    exit_code = ExitCode.ENDPOINT
