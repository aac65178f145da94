"""What interrupts a job, how often, and what each interruption costs before training goes on. No torch.

Failures come at a constant rate: of each node, and of the job as a whole. A rate of nodes alone does not fit what was
measured on small and on large jobs at once (docs/planner_goodput.md has both figures).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.config.reliability_schema import ReliabilityConfig

SECONDS_PER_DAY = 86_400.0


def seconds_at(num_devices: int, points: Sequence[Sequence[float]]) -> float:
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


def interruptions_of(
    reliability: ReliabilityConfig, *, num_nodes: int, devices_per_node: int, reload_seconds: float
) -> Interruptions:
    """Return what interrupts a job on a number of nodes, spares not counted.

    Args:
        reliability: the cluster's.
        num_nodes: nodes that work; each of them ends the job when it fails.
        devices_per_node: devices of a node.
        reload_seconds: how long the reading of the job's checkpoint takes.
    """
    return Interruptions(
        failures_per_day=reliability.failures_per_1000_node_days * num_nodes / 1000 + reliability.job_failures_per_day,
        detection_seconds=reliability.detection_seconds,
        restart_seconds=seconds_at(num_nodes * devices_per_node, reliability.cold_start_seconds),
        reload_seconds=reload_seconds,
        manual_share=reliability.manual_share,
        manual_seconds=reliability.manual_seconds,
        node_loss_share=reliability.node_loss_share,
        spare_nodes=reliability.spare_nodes or 0,
        repair_seconds=reliability.repair_seconds,
        planned_per_day=reliability.planned_per_day,
        planned_seconds=reliability.planned_seconds,
        failure_rate_sigma=reliability.failure_rate_sigma,
    )
