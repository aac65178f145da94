"""What interrupts a job, how often, and what each interruption costs before training goes on. No torch.

Failures come at a constant rate: of each node, and of the job as a whole. A rate of nodes alone does not fit what was
measured on small and on large jobs at once (docs/planner_goodput.md has both figures).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.errors import ConfigError

SECONDS_PER_DAY = 86_400.0

COLD_START_SECONDS = ((16_384, 200.0), (22_000, 300.0), (64_000, 600.0), (98_000, 900.0))
"""(devices, seconds) from the start of all processes to the first step, communicators included. Synchronous recovery
of Meta's H100 clusters (arXiv:2602.00277 as others quote it; NCCL's own part is 17, 30, 100 and 200 s)."""


def seconds_at(num_devices: int, points: Sequence[tuple[int, float]]) -> float:
    """Return the seconds of a curve for a number of devices: linear between its points and beyond the last two.

    Below the first point its value holds: what a small job would save was not measured.

    Args:
        num_devices: devices of the job.
        points: (devices, seconds), by rising devices.
    """
    if num_devices <= points[0][0] or len(points) == 1:
        return points[0][1]
    at = next((index for index, (devices, _) in enumerate(points) if num_devices <= devices), len(points) - 1)
    (left, left_seconds), (right, right_seconds) = points[at - 1 : at + 1]
    return left_seconds + (right_seconds - left_seconds) * (num_devices - left) / (right - left)


@dataclass(frozen=True, kw_only=True, slots=True)
class Interruptions:
    """What interrupts one job, with the number of its nodes worked in. All durations of one interruption."""

    failures_per_day: float
    """Of the whole job, by exponential waiting times."""
    detection_seconds: float = 0.0
    """From the failure to the end of all processes; nothing else can fail meanwhile."""
    restart_seconds: float = 0.0
    """From the start of the processes to the reading of the checkpoint. A failure meanwhile begins it anew."""
    reload_seconds: float = 0.0
    """Reading the checkpoint. A failure meanwhile begins the restart anew."""
    manual_share: float = 0.0
    """Share of failures that wait for a person, 0 to 1."""
    manual_seconds: float = 0.0
    """How long they wait."""
    node_loss_share: float = 1.0
    """Share of failures after which a node is taken out for repair, 0 to 1; the others restart where they were."""
    spare_nodes: int = 0
    """Nodes that stand by. Without one that is whole, the job waits for the first repair to end."""
    repair_seconds: float = 0.0
    """From the loss of a node to its return as a spare."""
    planned_per_day: float = 0.0
    """Planned interruptions (maintenance, a change of software): all is saved first."""
    planned_seconds: float = 0.0
    """How long one lasts, before the restart."""
    failure_rate_sigma: float = 0.0
    """How little the rate is known: standard deviation of its logarithm. Each simulated run draws its own rate, at most
    two of them from the given one."""

    @property
    def mtbf_seconds(self) -> float:
        """Mean time between failures; infinity without any."""
        return SECONDS_PER_DAY / self.failures_per_day if self.failures_per_day else float("inf")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """A cluster's failures and what follows them, for jobs of any size."""

    failures_per_1000_node_days: float = 3.22
    """Of one node. Llama 3 405B: 356 of 419 in 54 days on 2,048 nodes, without those of `job_failures_per_day`
    (arXiv:2407.21783, table 5). Other clusters: 6.50 and 2.34 (arXiv:2410.21680), 2.3 (arXiv:2602.00277)."""
    job_failures_per_day: float = 1.17
    """Failures that do not come with nodes: software bugs 54, collective timeouts 7, dependencies 2 of the same 419."""
    detection_seconds: float = 60.0
    """From a failure to the end of all processes. Inspection of the nodes sees most in 2-60 s, a collective's timeout
    in about 600 s (arXiv:2509.16293)."""
    cold_start_seconds: tuple[tuple[int, float], ...] = COLD_START_SECONDS
    """(devices, seconds) from the start of all processes to the first step, without the reading of the checkpoint."""
    manual_share: float = 0.007
    """Share of failures that need a person: 3 of 419 (arXiv:2407.21783, section 3.3.4)."""
    manual_seconds: float = 3600.0
    """How long these wait; an assumption, as nobody publishes it."""
    node_loss_share: float = 0.69
    """Share of failures that take a node out. An assumption: those of Llama 3's GPUs and host parts, 289 of 419, do;
    the network, software and work on the hosts leave the nodes whole (arXiv:2407.21783, table 5)."""
    spare_nodes: int = 0
    """Nodes booked besides those of the job."""
    repair_seconds: float = 2 * SECONDS_PER_DAY
    """Until a lost node is whole again; an assumption, as it depends on the contract."""
    planned_per_day: float = 0.0
    """Planned interruptions; Llama 3 had 47 in 54 days."""
    planned_seconds: float = 0.0
    """How long one of them lasts."""
    failure_rate_sigma: float = 0.5
    """Standard deviation of the logarithm of the rate: 0.49 between the four clusters named above."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: a rate, a duration or a share is out of range.
        """
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name == "cold_start_seconds":
                if not value or [devices for devices, _ in value] != sorted({devices for devices, _ in value}):
                    _refuse(name, value, "it needs at least one point, by rising devices", "[[16384, 200.0]]")
            elif value < 0:
                _refuse(name, value, "there is nothing less than none of it", "0")
            elif name.endswith("_share") and value > 1:
                _refuse(name, value, "a share is at most 1", "1.0")

    def of_job(self, *, num_nodes: int, devices_per_node: int, reload_seconds: float) -> Interruptions:
        """Return what interrupts a job on a number of nodes, spares not counted.

        Args:
            num_nodes: nodes that work; each of them ends the job when it fails.
            devices_per_node: devices of a node.
            reload_seconds: how long the reading of the job's checkpoint takes.
        """
        return Interruptions(
            failures_per_day=self.failures_per_1000_node_days * num_nodes / 1000 + self.job_failures_per_day,
            detection_seconds=self.detection_seconds,
            restart_seconds=seconds_at(num_nodes * devices_per_node, self.cold_start_seconds),
            reload_seconds=reload_seconds,
            manual_share=self.manual_share,
            manual_seconds=self.manual_seconds,
            node_loss_share=self.node_loss_share,
            spare_nodes=self.spare_nodes,
            repair_seconds=self.repair_seconds,
            planned_per_day=self.planned_per_day,
            planned_seconds=self.planned_seconds,
            failure_rate_sigma=self.failure_rate_sigma,
        )


def _refuse(name: str, given: object, reason: str, nearest: str) -> None:
    raise ConfigError(
        f"cluster.reliability.{name}",
        given,
        reason,
        f"give a value that can be, such as cluster.reliability.{name}={nearest}",
    )
