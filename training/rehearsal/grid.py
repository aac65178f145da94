"""Ranks as a grid of named axes, and the process groups along them. No torch.

The order of the axes is that of `training.parallel.layout.Layout` with room for the planned ones: pipeline slowest,
then data, then sequence, tensor fastest. Experts are spread over neighbours in data x sequence (DeepSpeed's expert
groups, 0.19.8, utils/groups.py, `_create_expert_and_data_parallel`), so expert is no axis of its own in the grid.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int32]


class GroupKind(StrEnum):
    """What ties the members of a process group together."""

    world = "world"
    """All ranks, over the devices' network."""
    world_cpu = "world on CPU"
    """All ranks, over gloo."""
    checkpoint = "checkpoint"
    """All ranks, over gloo, for the thread that writes checkpoints."""
    pipeline = "pipeline"
    """The pipeline stages of one whole model, in order."""
    shards = "replicas"
    """The ranks of one pipeline stage that ZeRO shards over: data x sequence."""
    tied = "tied weights"
    """First and last rank of one pipeline, which both hold a tied weight."""
    sequence = "sequence"
    """Ranks that share the tokens of each sequence."""
    tensor = "tensor"
    """Ranks that share every matrix product."""
    expert = "experts"
    """Ranks that the experts of a block are spread over."""
    expert_shards = "expert replicas"
    """Ranks that hold the same experts of one pipeline stage: ZeRO shards experts over them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Sizes of the parallel axes; ranks are numbered with pipeline slowest and tensor fastest."""

    pipeline: int = 1
    data: int = 1
    sequence: int = 1
    tensor: int = 1
    expert: int = 1
    """Divides data x sequence."""

    def __post_init__(self) -> None:
        assert self.num_shards % self.expert == 0, "the config checks see to it"

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pipeline * self.data * self.sequence * self.tensor

    @property
    def num_shards(self) -> int:
        """Ranks that ZeRO shards the state of a dense layer over."""
        return self.data * self.sequence

    @property
    def num_expert_shards(self) -> int:
        """Ranks that ZeRO shards the state of an expert over."""
        return self.num_shards // self.expert

    def groups(self, kind: GroupKind) -> Ranks:
        """Return the groups of a kind in the order in which they are made, one row of ranks each.

        Kinds but `tied` cover every rank once.
        """
        P, Z, T, E = self.pipeline, self.num_shards, self.tensor, self.expert
        ranks = np.arange(self.world_size, dtype=np.int32)
        by_shard = ranks.reshape(P, Z, T)
        match kind:
            case GroupKind.world | GroupKind.world_cpu | GroupKind.checkpoint:
                return ranks[None, :]
            case GroupKind.pipeline:
                return by_shard.reshape(P, Z * T).T
            case GroupKind.tied:
                return self.groups(GroupKind.pipeline)[:, [0, -1]]
            case GroupKind.shards:
                return by_shard.transpose(0, 2, 1).reshape(P * T, Z)
            case GroupKind.sequence:
                return by_shard.reshape(P, self.data, self.sequence, T).transpose(0, 1, 3, 2).reshape(-1, self.sequence)
            case GroupKind.tensor:
                return by_shard.reshape(-1, T)
            case GroupKind.expert:
                return by_shard.reshape(P, Z // E, E, T).transpose(0, 1, 3, 2).reshape(-1, E)
            case GroupKind.expert_shards:
                return by_shard.reshape(P, Z // E, E, T).transpose(0, 2, 3, 1).reshape(-1, Z // E)

    def pipeline_stage_of(self, rank: int) -> int:
        """Return the pipeline stage of a rank."""
        return rank * self.pipeline // self.world_size

    def shard_of(self, rank: int) -> int:
        """Return the place of a rank among those that ZeRO shards over."""
        return rank // self.tensor % self.num_shards

    def replica_of(self, rank: int) -> int:
        """Return the data replica of a rank: ranks of one replica read the same samples."""
        return self.shard_of(rank) // self.sequence

    def name(self, rank: int) -> str:
        """Return a rank with its place, for people."""
        return f"rank {rank} (pipeline stage {self.pipeline_stage_of(rank)}, replica {self.replica_of(rank)})"


def shown(ranks: Ranks) -> str:
    """Return ranks as text: "rank 3", "ranks 0-7", "ranks 0-56/8" (every eighth), or some and how many more."""
    numbers = np.unique(ranks)
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    steps = np.unique(np.diff(numbers))
    if len(steps) == 1:
        return f"ranks {numbers[0]}-{numbers[-1]}" + (f"/{steps[0]}" if steps[0] > 1 else "")
    few = ", ".join(map(str, numbers[:4]))
    return f"ranks {few}" + (f" and {len(numbers) - 4:,} more" if len(numbers) > 4 else "")
