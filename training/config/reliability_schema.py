"""Sections of `cluster` that plans alone read: failures, storage, power. Part of `schema.py`."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityConfig:
    """A cluster's failures and what follows them, for jobs of any size."""

    failures_per_1000_node_days: float = 3.22
    """Of one node. Llama 3 405B: 356 of 419 in 54 days on 2,048 nodes, without those of `job_failures_per_day`
    (arXiv:2407.21783, table 5). Other clusters: 6.50 and 2.34 (arXiv:2410.21680), 2.3 (arXiv:2602.00277)."""
    job_failures_per_day: float = 1.17
    """Failures that do not come with nodes: software bugs 54, collective timeouts 7, dependencies 2 of the same 419."""
    detection_seconds: float = 60.0
    """From a failure to the end of all processes. Inspection of the nodes sees most in 2-60 s, a collective's timeout
    in about 600 s (arXiv:2509.16293)."""
    cold_start_seconds: list[list[float]] = field(
        default_factory=lambda: [[16_384, 200.0], [22_000, 300.0], [64_000, 600.0], [98_000, 900.0]]
    )
    """Pairs [devices, seconds], by rising devices: from the start of all processes to the first step, communicators
    included, without the reading of the checkpoint. Synchronous recovery of Meta's H100 clusters (arXiv:2602.00277, of
    which NCCL's own part is 17, 30, 100 and 200 s)."""
    manual_share: float = 0.007
    """Share of failures that need a person: 3 of 419 (arXiv:2407.21783, section 3.3.4)."""
    manual_seconds: float = 3600.0
    """How long these wait; an assumption, as nobody publishes it."""
    node_loss_share: float = 0.69
    """Share of failures that take a node out. An assumption: those of Llama 3's GPUs and host parts, 289 of 419, do;
    the network, software and work on the hosts leave the nodes whole (arXiv:2407.21783, table 5)."""
    spare_nodes: int | None = None
    """Nodes booked besides those of the job; null is as many as are enough in 99 % of the time."""
    repair_seconds: float = 172_800.0
    """Until a lost node is whole again; an assumption, as it depends on the contract."""
    planned_per_day: float = 0.0
    """Planned interruptions; Llama 3 had 47 in 54 days."""
    planned_seconds: float = 0.0
    """How long one of them lasts."""
    failure_rate_sigma: float = 0.5
    """Standard deviation of the logarithm of the rate: 0.49 between the four clusters named above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageConfig:
    """Where checkpoints go."""

    write_bytes_per_second: float | None = None
    """Of the whole cluster; null is not known, and then plans take 1 GB/s for each node."""
    read_bytes_per_second: float | None = None
    """Of the whole cluster; null is as fast as writing."""
    host_copy_bytes_per_second: float = 20e9
    """From one device to its host's memory, of which an asynchronous save waits. An assumption, well below the 63 GB/s
    of PCIe 5 x16, as all devices of a node copy at once."""
    write_slowdown: float = 0.0
    """Share of its speed, 0 to 1, that training loses while a save is written beside it. PyTorch's distributed
    checkpoint of Llama 3 70B on 1,856 H200: 372 tokens/s instead of 700 for 67 s, that is 0.47."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerConfig:
    """What nodes draw besides accelerator.power_watts, for plans."""

    host_watts: float = 2150.0
    """Of the rest of one node. 8 H100 of 700 W and this are the 7.75 kW, 76 % of 10.2 kW, that training was measured
    to take at most on average (arXiv:2506.14551)."""
    waiting_share: float = 0.1
    """What a device that waits draws, as a share of power_watts; an assumption, 70 of 700 W."""
    pue: float = 1.2
    """Power usage effectiveness: energy of the whole site by that of its computers, cooling included. Jean Zay's
    (arXiv:2211.02001)."""
    price_per_kwh: float | None = None
    """In the currency of the devices' price; null where that includes it."""
