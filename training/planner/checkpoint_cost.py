"""What one checkpoint costs: the time training stands still, the time until it may be relied on, the time to read it.

No torch. Sizes are of the whole job; the storage is shared by all of it.
"""

from dataclasses import dataclass

from training.errors import ConfigError

BYTES_PER_PARAMETER = 12
"""Autarky saves fp32 master weights and AdamW's two moments (training/checkpoint/manifest.py). Others save the bf16
weights too: 14 (BLOOM's tr11 README), 12.8-13.1 (NVIDIA dgxc-benchmarking v25.04)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointCost:
    """Times of one checkpoint of a job."""

    stall_seconds: float
    """In which no training happens."""
    write_seconds: float
    """From the state that it holds to its commit; whatever fails before goes back to the one before. Never less than
    the stall."""
    reload_seconds: float = 0.0
    """To read it at a restart."""

    def __post_init__(self) -> None:
        """Refuse times that contradict each other.

        Raises:
            ValueError: a negative time, or a write that ends before the stall does.
        """
        if min(self.stall_seconds, self.reload_seconds) < 0 or self.write_seconds < self.stall_seconds:
            raise ValueError(f"{self}: times are not negative, and a write takes no less than its stall")


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """What checkpoints are written to and read from."""

    write_bytes_per_second: float
    """Of the whole cluster, or of the job's nodes where that is less."""
    read_bytes_per_second: float
    """The same of reading."""
    host_copy_bytes_per_second: float = 20e9
    """From one device to its host's memory, of which an asynchronous save waits. An assumption, well below the 63 GB/s
    of PCIe 5 x16, as all devices of a node copy at once."""
    write_slowdown: float = 0.0
    """Share of its speed, 0 to 1, that training loses while a save is written beside it. PyTorch's distributed
    checkpoint of Llama 3 70B on 1,856 H200: 372 tokens/s instead of 700 for 67 s, that is 0.47."""

    def __post_init__(self) -> None:
        """Refuse rates that cannot be.

        Raises:
            ConfigError: a rate that is not above 0, or a slowdown outside 0 to 1.
        """
        for name in ("write_bytes_per_second", "read_bytes_per_second", "host_copy_bytes_per_second"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"cluster.storage.{name}",
                    getattr(self, name),
                    "nothing would ever be saved or read",
                    f"the measured rate in bytes per second, for example cluster.storage.{name}=100e9",
                )
        if not 0 <= self.write_slowdown < 1:
            raise ConfigError(
                "cluster.storage.write_slowdown",
                self.write_slowdown,
                "training cannot lose less than nothing, nor all of its speed",
                "a share from 0 to below 1, for example cluster.storage.write_slowdown=0.1",
            )

    def checkpoint_cost(self, *, checkpoint_bytes: float, num_devices: int, asynchronous: bool) -> CheckpointCost:
        """Return the times of one checkpoint.

        Args:
            checkpoint_bytes: the whole checkpoint, spread evenly over the devices.
            num_devices: devices that hold it.
            asynchronous: whether training goes on once the host's memory has it (checkpoint.asynchronous).
        """
        copy = checkpoint_bytes / num_devices / self.host_copy_bytes_per_second
        transfer = checkpoint_bytes / self.write_bytes_per_second
        stall = copy + (self.write_slowdown if asynchronous else 1.0) * transfer
        return CheckpointCost(
            stall_seconds=stall,
            write_seconds=copy + transfer,
            reload_seconds=checkpoint_bytes / self.read_bytes_per_second,
        )
