"""Which rank does what: the bijection between ranks and (pipeline stage, data replica). No torch."""

from dataclasses import dataclass

from training.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Ranks as a (pipeline stage, data replica) grid: rank = pipeline_stage * num_replicas + replica.

    Replicas of one pipeline stage are neighbours, so that ZeRO's heavy traffic stays inside a node; this is also
    DeepSpeed's order (0.19.8, runtime/pipe/topology.py, axes ["pipe", "data"]).

    Raises:
        ConfigError: the pipeline does not divide the world size.
    """

    world_size: int
    num_pipeline_stages: int = 1
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

    @property
    def num_replicas(self) -> int:
        """Data replicas."""
        return self.world_size // self.num_pipeline_stages

    def pipeline_stage_of(self, rank: int) -> int:
        """Return the pipeline stage of a rank."""
        return rank // self.num_replicas

    def replica_of(self, rank: int) -> int:
        """Return the data replica of a rank."""
        return rank % self.num_replicas

    def rank_of(self, *, pipeline_stage: int, replica: int) -> int:
        """Return the rank at a place of the grid."""
        return pipeline_stage * self.num_replicas + replica

    def pipeline_group(self, replica: int) -> list[int]:
        """Return the ranks of one whole model, first pipeline stage first."""
        return [self.rank_of(pipeline_stage=s, replica=replica) for s in range(self.num_pipeline_stages)]

    def replica_group(self, pipeline_stage: int) -> list[int]:
        """Return the ranks that share one pipeline stage, first replica first: what ZeRO shards over."""
        return [self.rank_of(pipeline_stage=pipeline_stage, replica=r) for r in range(self.num_replicas)]

    def describe(self) -> str:
        """Return a line for people."""
        ranks = f"{self.world_size} rank{'s' if self.world_size > 1 else ''}"
        return f"pipeline {self.num_pipeline_stages} × data {self.num_replicas}, ZeRO-{self.zero_stage}, {ranks}"
