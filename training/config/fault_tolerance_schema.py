"""The part of the schema that says what counts as a loss spike or as silent corruption, and what is done about it."""

from dataclasses import dataclass
from enum import StrEnum


class SpikeAction(StrEnum):
    """What is done about a loss far above the usual: nothing, write it down, hold the update back, or go back."""

    none = "none"
    log = "log"
    skip = "skip"
    rollback = "rollback"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryConfig:
    """What counts as a loss spike, and what is done about it (docs/adr/0007)."""

    on_loss_spike: SpikeAction = SpikeAction.log
    """log writes an incident; skip holds the update back on all ranks; rollback goes back to before the spike and
    leaves the data of these steps out; none does not look."""
    window_steps: int = 128
    """Steps whose losses say what is usual: the last ones of the training stage whose updates were used."""
    min_steps: int = 32
    """Such steps needed before a loss is judged."""
    threshold_sigmas: float = 6.0
    """A loss is a spike if it lies above the window's median by more than this many robust standard deviations
    (1.4826 times the median absolute deviation, at least 1 % of the median)."""
    grad_norm_sigmas: float | None = None
    """The same for the gradient norm, which is only written down (clipping has bounded the update); null does not
    look."""
    patience_steps: int = 1
    """Spikes in a row before the update is held back, or the run goes back; those before are written down and used."""
    rewind_steps: int = 0
    """Rollback: steps before the first spike whose data is left out too; the cause may lie there (arXiv:2204.02311,
    section 5.1, left out 200 to 500 batches)."""
    max_rollbacks: int = 3
    """Rollbacks of a run before the next one stops it with exit code 5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorruptionConfig:
    """Checks that hardware computes and keeps what it should; each names the rank and host that does not."""

    check_replicas: bool = True
    """Before each checkpoint, compare all copies of the weights with the fp32 weights that they are copies of."""
    at_rest_every_steps: int | None = None
    """Optimizer steps between checks that weights and optimizer state are, when they are updated, what the update
    before left; null does not check."""
    rerun_every_steps: int | None = None
    """Optimizer steps between those that are computed twice and compared bit by bit before the update; null computes
    none twice. On GPUs this switches PyTorch's deterministic kernels on, which costs speed in all steps."""
