"""Which rank does what: ranks as a grid of pipeline stages, data replicas and parts of their sequences. No torch."""

from dataclasses import dataclass

from training.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Ranks as a grid: rank = (pipeline_stage * num_replicas + replica) * sequence + part of the sequences.

    A shard is a rank's place among those of its pipeline stage: what ZeRO divides the state among. They are neighbours,
    so that ZeRO's heavy traffic stays inside a node; this is also DeepSpeed's order (0.19.8, runtime/pipe/topology.py,
    axes ["pipe", "data"]). Experts are spread over neighbouring shards (utils/groups.py,
    `_create_expert_and_data_parallel`).

    Raises:
        ConfigError: the pipeline does not divide the world size.
    """

    world_size: int
    num_pipeline_stages: int = 1
    sequence: int = 1
    """Ranks that share the tokens of each sequence."""
    expert: int = 1
    """Shards that the experts of a block are spread over."""
    zero_stage: int = 0

    def __post_init__(self) -> None:
        if self.world_size % self.num_pipeline_stages:
            divisors = [d for d in range(1, self.world_size + 1) if self.world_size % d == 0]
            nearest = min(divisors, key=lambda d: abs(d - self.num_pipeline_stages))
            raise ConfigError(
                "parallel.pipeline",
                self.num_pipeline_stages,
                f"{self.world_size} ranks cannot be cut into {self.num_pipeline_stages} equal pipeline stages",
                f"parallel.pipeline={nearest} works (divisors of {self.world_size}: {divisors})",
            )
        assert self.num_shards % self.sequence == 0, "the config checks see to it"
        assert self.num_shards % self.expert == 0, "the config checks see to it"

    @property
    def num_shards(self) -> int:
        """Ranks of a pipeline stage: data replicas times the ranks that share each one's sequences."""
        return self.world_size // self.num_pipeline_stages

    @property
    def num_replicas(self) -> int:
        """Data replicas: each reads samples of its own."""
        return self.num_shards // self.sequence

    def pipeline_stage_of(self, rank: int) -> int:
        """Return the pipeline stage of a rank."""
        return rank // self.num_shards

    def shard_of(self, rank: int) -> int:
        """Return a rank's place among those of its pipeline stage."""
        return rank % self.num_shards

    def replica_of(self, rank: int) -> int:
        """Return the data replica of a rank."""
        return self.shard_of(rank) // self.sequence

    def sequence_part_of(self, rank: int) -> int:
        """Return which part of its replica's sequences a rank has."""
        return rank % self.sequence

    def speaks_for_replica(self, rank: int) -> bool:
        """Return whether what a whole replica knows is told by this rank: one of each replica."""
        return self.pipeline_stage_of(rank) == 0 and self.sequence_part_of(rank) == 0

    def rank_of(self, *, pipeline_stage: int, shard: int) -> int:
        """Return the rank at a place of the grid."""
        return pipeline_stage * self.num_shards + shard

    def pipeline_group(self, shard: int) -> list[int]:
        """Return the ranks that a shard's hidden states pass, first pipeline stage first."""
        return [self.rank_of(pipeline_stage=s, shard=shard) for s in range(self.num_pipeline_stages)]

    def shard_group(self, pipeline_stage: int) -> list[int]:
        """Return the ranks that share one pipeline stage, first shard first: what ZeRO shards over."""
        return [self.rank_of(pipeline_stage=pipeline_stage, shard=shard) for shard in range(self.num_shards)]

    def sequence_groups(self) -> list[list[int]]:
        """Return all groups of ranks that share sequences, first part first."""
        return _runs(range(self.world_size), self.sequence)

    def expert_groups(self) -> list[list[int]]:
        """Return all groups of ranks that the experts of a block are spread over, first experts first."""
        return _runs(range(self.world_size), self.expert)

    def expert_shard_groups(self) -> list[list[int]]:
        """Return all groups of ranks that hold the same experts: what ZeRO shards experts over."""
        return [
            self.shard_group(pipeline_stage)[place :: self.expert]
            for pipeline_stage in range(self.num_pipeline_stages)
            for place in range(self.expert)
        ]

    def describe(self) -> str:
        """Return a line for people."""
        ranks = f"{self.world_size} rank{'s' if self.world_size > 1 else ''}"
        axes = [f"pipeline {self.num_pipeline_stages} × data {self.num_replicas}"]
        axes += [f"sequence {self.sequence}"] if self.sequence > 1 else []
        experts = f", experts over {self.expert}" if self.expert > 1 else ""
        return f"{' × '.join(axes)}{experts}, ZeRO-{self.zero_stage}, {ranks}"


def _runs(ranks: range, size: int) -> list[list[int]]:
    return [list(ranks[start : start + size]) for start in range(0, len(ranks), size)]
