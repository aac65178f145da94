"""The part of the schema that says when a rank hangs and when it is slow; see `training/config/schema.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class HangConfig:
    """Longest time in one section without progress; then the rank to blame is named and the job ends with exit code 11.

    A limit longer than a collective may wait (collective_timeout_seconds, in a save commit_timeout_seconds) counts as
    nine tenths of that: the collective's own error names nobody.
    """

    start_up_seconds: float = 300.0
    """From the first rendezvous to the run directory, its lease and its config."""
    prepare_seconds: float = 600.0
    """Preparing and opening data, before the first training stage."""
    build_seconds: float = 600.0
    """Building a training stage's engine."""
    load_seconds: float = 600.0
    """Loading a checkpoint or initial weights."""
    data_seconds: float = 120.0
    """Reading the micro-batches of one step."""
    first_step_seconds: float = 600.0
    """The first step after an engine was built: kernels are compiled, buffers allocated."""
    step_seconds: float | None = None
    """Any later step; null is three times the slowest of the last 100, at least 10 s on CPU and 60 s elsewhere."""
    save_seconds: float = 1800.0
    """Copying the state for a save, or waiting for one; what is written beside the training counts once it is waited
    for."""
    evaluation_seconds: float = 300.0
    """One batch of an evaluation, or what lies between two."""
    between_seconds: float = 300.0
    """Gates, the ledger, and the end of the run with its report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StragglerConfig:
    """When a rank counts as slow; it is named in an incident and goes on.

    A rank's busy time, step less waiting for others, is compared with the median of the other replicas of its pipeline
    stage. Only where the host sees the waiting: on CPU.
    """

    window_steps: int = 20
    """Steps whose busy time is averaged before it is compared."""
    ratio: float = 1.3
    """A window this much above the others' median is a slow one."""
    slow_windows: int = 3
    """Slow windows, of the last `of_windows`, before the rank is named; named again only after as many good ones."""
    of_windows: int = 4
    """Windows looked back on."""
