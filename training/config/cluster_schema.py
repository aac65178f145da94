"""Sections of `cluster`: devices, what connects them, hosts of a file, preflight. Part of `schema.py`."""

from dataclasses import dataclass, field
from enum import StrEnum


class HostfileLauncher(StrEnum):
    """How DeepSpeed's launcher reaches the hosts of a file (its option --launcher)."""

    pdsh = "pdsh"
    openmpi = "openmpi"


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceleratorConfig:
    """One device of the cluster."""

    name: str
    """Product name, shown beside MFU."""
    device: str = "cpu"
    """DeepSpeed accelerator name (DS_ACCELERATOR): cpu, cuda, …"""
    peak_flops_per_second: float | None = None
    """Dense matrix-multiply peak at the run's precision; null measures it at the start (CPU)."""
    fp8_flops_per_second: float | None = None
    """The same for operands in fp8; null where it has no units for them."""
    memory_bytes: float | None = None
    """Memory of one device, in bytes; null divides this machine's among its ranks (CPU)."""
    memory_bytes_per_second: float | None = None
    """Speed of that memory, for plans; null is not known, and then a plan has no step time."""
    power_watts: float | None = None
    """Of the device alone, at full load; null is not known."""
    price_per_hour: float | None = None
    """Of one device, in any one currency: for plans, and what evaluations cost in their reports; null is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """What connects the devices; read by plans alone."""

    node_bytes_per_second: float
    """Bandwidth of one device to the others of its node, in one direction."""
    cluster_bytes_per_second: float
    """Bandwidth of one device's share of its node's network cards, in one direction."""
    devices_per_fast_group: int | None = None
    """Devices that the fast links join, where these reach beyond a node (NVL72); null is processes_per_node."""
    devices_per_pod: int | None = None
    """Devices that reach each other at full bandwidth; null is all."""
    oversubscription: float = 1.0
    """How many times less bandwidth there is between pods than within one."""
    node_latency_seconds: float = 3e-6
    """Time of the shortest message within a node."""
    cluster_latency_seconds: float = 8e-6
    """Time of the shortest message between nodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostfileConfig:
    """Hosts that DeepSpeed's launcher starts the ranks on (cluster.launcher=hostfile)."""

    path: str
    """File with one line `NAME slots=N` per host; a relative path counts from the launch directory. It decides
    num_nodes and processes_per_node unless these are given: then the first so many hosts and slots are used."""
    launcher: HostfileLauncher = HostfileLauncher.pdsh
    """What starts processes on the hosts: pdsh (over ssh) or openmpi (mpirun)."""
    include: list[str] = field(default_factory=list)
    """Names of hosts to use, of those in the file; empty takes all."""
    exclude: list[str] = field(default_factory=list)
    """Names of hosts to leave out."""
    ssh_config: str | None = None
    """OpenSSH client configuration (`ssh -F`): keys, users, jump hosts; null takes ssh's own."""
    ssh_port: int | None = None
    """Port of the hosts' ssh servers; null takes ssh's own."""
    master_addr: str | None = None
    """Address of the first host as all hosts reach it; null takes its name in the file."""
    interface: str | None = None
    """Network interface of the rendezvous and of gloo and NCCL's connections (eth0); null lets them choose."""
    export: list[str] = field(default_factory=list)
    """Names of further environment variables that ranks need; their values are seen in process lists, so no secrets."""
    launcher_args: list[str] = field(default_factory=list)
    """Further words for pdsh or mpirun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreflightConfig:
    """What every node must show before a run over several nodes starts (`python -m launch.preflight`)."""

    enabled: bool = True
    """Whether launch.submit, or the Slurm job, checks the nodes first; false starts unseen."""
    check_seconds: float = 20.0
    """Longest one check may take; then it is killed and counts as failed."""
    free_bytes: float = 20e9
    """Free space that run.root and data.prepared_root need, in bytes."""
    write_bytes_per_second: float = 50e6
    """Speed at which a node must write to run.root, in bytes per second; slower is a warning."""
    clock_offset_seconds: float = 2.0
    """How far a node's clock may be from the clock of the machine that asks."""
    gpu_temperature_celsius: float = 55.0
    """How warm an idle GPU may be (OLMo-core's start script: 50 warns, 55 fails)."""
    gpu_memory_used_bytes: float = 1e9
    """Memory of a GPU that may be taken before the start: more is somebody else's process."""
    correctable_ecc_errors: int = 20_000_000
    """Correctable ECC errors of a GPU since its driver was loaded; more is a warning (azurehpc-health-checks:
    check_gpu_ecc 20000000)."""
    nvlinks_per_gpu: int | None = None
    """NVLinks of each GPU that must be up; null does not look."""
    infiniband_ports: int | None = None
    """InfiniBand ports of a node that must be active; null does not look."""
    infiniband_bits_per_second: float | None = None
    """Rate of each of these ports, in bits per second."""
    dcgm_level: int | None = None
    """Level of `dcgmi diag -r`; 1 takes seconds, 2 minutes, 3 half an hour. Null does not run it."""
    collective_bytes: int = 64_000_000
    """Size of the all-reduce of the bandwidth test, in bytes."""
    collective_bytes_per_second: float | None = None
    """Bus bandwidth that the all-reduce over all ranks must reach, in bytes per second; null does not measure."""
    collective_seconds: float = 120.0
    """Longest the bandwidth test may take, the start of its ranks included."""
