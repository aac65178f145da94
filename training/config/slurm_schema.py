"""Section `cluster.slurm`: what Slurm is asked for, and when a job starts again. Part of `schema.py`."""

from dataclasses import dataclass, field
from enum import StrEnum


class SlurmChain(StrEnum):
    """What one Slurm job is: the whole run, or one training stage after another, each waiting for the one before."""

    run = "run"
    stages = "stages"


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerConfig:
    """A container for the ranks, by Slurm's plugin pyxis (github.com/NVIDIA/pyxis). The batch script runs outside."""

    image: str
    """Image as pyxis takes it: a squashfs file, or REGISTRY#IMAGE:TAG."""
    mounts: list[str] = field(default_factory=list)
    """SOURCE:TARGET[:FLAGS]. The code, run.root, data.prepared_root and checkpoint.fast_root are always mounted."""
    python: str = "python3"
    """Interpreter inside the container."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmConfig:
    """What Slurm is asked for (cluster.launcher=slurm), and how often a run may start again by itself."""

    partition: str | None = None
    """Partition; null takes the cluster's default."""
    account: str | None = None
    """Account to charge; null takes the user's default."""
    qos: str | None = None
    """Quality of service; null takes the default."""
    time_limit: str | None = None
    """Longest one start may run: D-HH:MM:SS or HH:MM:SS; null takes the partition's limit."""
    signal_seconds: int = 300
    """How long before the time limit the run is told to save and to go back into the queue; Slurm may be 60 s early."""
    max_requeues: int = 100
    """How often a job may start again, for whatever reason; then it stops."""
    no_progress_starts: int = 3
    """Starts in a row that may fail at the same step; then the run stops with exit code 12."""
    exclusive: bool = True
    """Whole nodes, with all their memory."""
    gpus_per_node: int | None = None
    """GPUs to ask for on each node; null asks for none (CPU, or where exclusive nodes bring theirs)."""
    constraint: str | None = None
    """Features that nodes must have."""
    exclude: list[str] = field(default_factory=list)
    """Nodes that are not used; those that a run has found bad come on top."""
    spare_nodes: int = 0
    """Nodes to allocate beyond num_nodes: they take the place of nodes that fail their check before the start."""
    chain: SlurmChain = SlurmChain.run
    """One job for the whole run, or one job per training stage."""
    array_limit: int | None = None
    """How many runs of a sweep may run at the same time; null sets no limit."""
    container: ContainerConfig | None = None
    """Container of the ranks; null starts them directly."""
    directives: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, by their long names: {reservation: night, switches: "1"}; "" for one that takes no
    value."""
