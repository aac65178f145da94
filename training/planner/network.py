"""Collective -> seconds, on the links that its members are joined by. No torch.

Volumes and bus bandwidths are those of NCCL's tests (nccl-tests, doc/PERFORMANCE.md): an all-gather or reduce-scatter
of a message of S bytes moves S (n-1)/n of them through each member's links, an all-reduce twice as many.
"""

from dataclasses import dataclass

from training.planner.efficiency import Efficiency
from training.planner.job import Job, Network


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that communicate, and where they are."""

    size: int
    """Members."""
    members_per_node: int
    """Members that share a node; the others are spread alike."""
    span: int
    """Ranks from the first member to the last, and beyond it to the next: tells how many pods the group spans."""

    @property
    def is_local(self) -> bool:
        """Whether all members share a node."""
        return self.members_per_node >= self.size


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one rank. Ranks are dealt out tensor first, then context, replicas, pipeline (Megatron's order)."""

    tensor: Group
    context: Group
    shards: Group
    """Ranks with the same part of the model, and other tokens: ZeRO's."""
    gather: Group
    """Ranks that ZeRO-3 gathers weights from in backward: fewer with a second copy of them (hpZ, arXiv:2306.10209)."""
    expert: Group
    expert_replicas: Group
    """Ranks with the same experts."""
    pipeline_stride: int
    """Ranks from one pipeline stage to the next."""


def groups_of(job: Job) -> Groups:
    """Return the groups of a job's ranks."""
    split, network = job.split, job.network

    def group(size: int, stride: int) -> Group:
        per_node = max(1, network.devices_per_node // stride)
        return Group(size, min(size, per_node), size * stride)

    return Groups(
        tensor=group(split.tensor, 1),
        context=group(split.context, split.tensor),
        shards=group(split.shards, split.tensor),
        gather=group(split.zero3_group or split.shards, split.tensor),
        expert=group(split.expert, split.tensor),
        expert_replicas=group(max(1, split.shards // split.expert), split.tensor * split.expert),
        pipeline_stride=split.tensor * split.shards,
    )


@dataclass(frozen=True, slots=True)
class Collectives:
    """Seconds of collectives on one network."""

    network: Network
    efficiency: Efficiency

    def all_gather(self, num_bytes: float, group: Group, *, messages: float = 1) -> float:
        """Return the time until every member has all `num_bytes`; a reduce-scatter takes as long.

        It goes around a ring, whose every step waits for the slowest link. Between nodes, the members of a node are one
        ring through all their network cards: a message enters and leaves a node once, on as many cards as it has
        members there.

        Args:
            num_bytes: the whole message, of all members together.
            group: the members.
            messages: parts that are sent one after the other, each with its own latency.
        """
        if group.size <= 1 or num_bytes <= 0:
            return 0.0
        return num_bytes * (group.size - 1) / group.size / self._bandwidth(group) + messages * self._ring_latency(group)

    def all_reduce(self, num_bytes: float, group: Group, *, messages: float = 1) -> float:
        """Return the time until every member has the sum: a ring within a node, trees between nodes (NCCL 2.4)."""
        if group.size <= 1 or num_bytes <= 0:
            return 0.0
        moving = 2 * num_bytes * (group.size - 1) / group.size / self._bandwidth(group)
        if group.is_local:
            return moving + messages * 2 * self._ring_latency(group)
        depth = max(1, (group.size // group.members_per_node - 1).bit_length())
        local = (group.members_per_node - 1) * self.network.node_latency_seconds
        return moving + messages * 2 * (depth * self.network.cluster_latency_seconds + local)

    def all_to_all(self, num_bytes: float, group: Group, *, copies: float = 1.0, deduplicates: bool = False) -> float:
        """Return the time in which each member sends `num_bytes` in equal parts to all members, itself among them.

        Args:
            num_bytes: sent by one member.
            group: the members.
            copies: of each token among these bytes.
            deduplicates: whether a node gets one copy at most, and passes it on within (DeepEP, HybridEP).
        """
        if group.size <= 1 or num_bytes <= 0:
            return 0.0
        here = group.members_per_node / group.size
        within = self.network.node_bandwidth * self.efficiency.node_links
        if group.is_local:
            return num_bytes * (group.size - 1) / group.size / within + self.network.node_latency_seconds
        remote = num_bytes * (1 - here)
        if deduplicates:
            # A node is sent a token if at least one of its copies goes there.
            remote = num_bytes / copies * (1 / here - 1) * (1 - (1 - here) ** copies)
        seconds = max(num_bytes / within, remote / self._card_bandwidth(group))
        return seconds + self.network.cluster_latency_seconds

    def send(self, num_bytes: float, *, stride: int) -> float:
        """Return the time of a message to the rank `stride` further on."""
        network = self.network
        if stride < network.devices_per_node:
            return num_bytes / (network.node_bandwidth * self.efficiency.node_links) + network.node_latency_seconds
        return num_bytes / self._card_bandwidth(Group(2, 1, 2 * stride)) + network.cluster_latency_seconds

    def _bandwidth(self, group: Group) -> float:
        within = self.network.node_bandwidth * self.efficiency.node_links
        return within if group.is_local else min(within, group.members_per_node * self._card_bandwidth(group))

    def _card_bandwidth(self, group: Group) -> float:
        network = self.network
        pod = network.devices_per_pod
        shared = network.oversubscription if pod is not None and group.span > pod else 1.0
        return network.cluster_bandwidth * self.efficiency.cluster_links / shared

    def _ring_latency(self, group: Group) -> float:
        network = self.network
        step = network.node_latency_seconds if group.is_local else network.cluster_latency_seconds
        return (group.size - 1) * step
