"""The bytes of one rank by what they are, from its chunks, their engines and what a micro-batch keeps. No torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from training.config.deepspeed_config import REDUCE_BUCKET_ELEMENTS
from training.config.schema import Precision, Recompute
from training.models.activation_memory import ActivationMemory
from training.models.sizes import ChunkSize, EngineSize
from training.models.zero_memory import ZeroMemory

_GIB = 2**30
_HIDDEN_ON_THE_WAY = 4
"""Hidden states and their gradients, arriving and leaving."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Bytes of one rank, each at its own highest."""

    weights_bytes: int
    """Weights in the run's dtype: a shard under ZeRO-3, else whole."""
    gradients_bytes: int
    """Accumulated gradients."""
    optimizer_bytes: int
    """fp32 master weights and both moments."""
    gathered_bytes: int
    """Weights that ZeRO-3 has gathered, besides the shard."""
    activations_bytes: int
    """Kept for the backward of all micro-batches in flight."""
    block_bytes: int
    """The backward of one block, beyond what was kept for it."""
    logits_bytes: int
    """Logits and loss of one micro-batch; 0 but on the last pipeline stage."""
    buffers_bytes: int
    """Gradients on their way through DeepSpeed's bucket, hidden states on theirs between pipeline stages."""
    update_bytes: int
    """What AdamW needs besides gradients and state."""

    @property
    def resident_bytes(self) -> int:
        """Weights, gradients and optimizer state: what every micro-batch finds."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        """The highest sum at any time: loss and blocks' backwards take turns, as do micro-batches and the update."""
        micro_batches = self.gathered_bytes + self.activations_bytes + max(self.block_bytes, self.logits_bytes)
        return self.resident_bytes + self.buffers_bytes + max(micro_batches, self.update_bytes)

    def describe(self) -> str:
        """Return a line for people."""
        parts = [f"{name.removesuffix('_bytes')} {count / _GIB:.1f}" for name, count in asdict(self).items()]
        return f"{self.total_bytes / _GIB:.1f} GiB at the highest ({', '.join(parts)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankParts:
    """What a rank's memory follows from."""

    chunks: Sequence[ChunkSize]
    """Its chunks."""
    zero_stage: int
    precision: Precision
    num_shards: int
    """Ranks that ZeRO shards over."""
    expert: int
    """Ranks that experts are spread over."""
    micro_batch: ActivationMemory
    recompute: Recompute
    in_flight: int
    """Micro-batches of a chunk whose activations are kept at once, at most."""
    pipeline: int
    gathers_per_step: bool
    """Whether ZeRO-3's weights stay whole through a step."""
    bucket_elements: int | None
    """Of each engine; None is the largest of what it gathers at once, as in our chunks (training/engine/chunk.py)."""
    doubled_buckets: bool
    """Whether DeepSpeed's PipelineEngine makes one more bucket."""

    def memory(self) -> RankMemory:
        """Return the rank's memory."""
        dense = [(chunk, self._zero(1)) for chunk in self.chunks]
        routed = [(chunk.experts, self._zero(self.expert)) for chunk in self.chunks if chunk.experts is not None]
        engines: list[tuple[EngineSize, ZeroMemory]] = [*dense, *routed]
        # The output of each micro-batch in flight is where its backward starts.
        hidden = (self.in_flight + _HIDDEN_ON_THE_WAY) * self.micro_batch.hidden_bytes if self.pipeline > 1 else 0
        return RankMemory(
            weights_bytes=sum(zero.weights_bytes(engine.num_parameters) for engine, zero in engines),
            gradients_bytes=sum(zero.gradients_bytes(engine.num_parameters) for engine, zero in engines),
            optimizer_bytes=sum(zero.optimizer_bytes(engine.num_parameters) for engine, zero in engines),
            gathered_bytes=sum(
                zero.gathered_bytes([engine for engine, _ in of_kind], whole=self.gathers_per_step)
                for of_kind in (dense, routed)
                for zero in [zero for _, zero in of_kind[:1]]
            ),
            activations_bytes=self.in_flight * max(self._kept_bytes(chunk) for chunk in self.chunks),
            block_bytes=max(
                self.micro_batch.block_backward_bytes(self.recompute, has_experts=has_experts)
                for has_experts in self._kinds_of_blocks()
            ),
            logits_bytes=self.micro_batch.loss_bytes if self.chunks[-1].has_head else 0,
            buffers_bytes=hidden
            + sum(self._buckets_bytes(of_kind) for of_kind in (dense, routed) if of_kind)
            + max(zero.reduction_bytes(self._bucket(engine), engine) for engine, zero in engines),
            update_bytes=max(zero.update_bytes(engine.num_parameters) for engine, zero in engines),
        )

    def _zero(self, expert: int) -> ZeroMemory:
        return ZeroMemory(
            zero_stage=self.zero_stage, precision=self.precision, num_replicas=max(1, self.num_shards // expert)
        )

    def _kept_bytes(self, chunk: ChunkSize) -> int:
        counts = {False: chunk.num_blocks - chunk.num_expert_blocks, True: chunk.num_expert_blocks}
        kept = sum(
            count * self.micro_batch.block_bytes(self.recompute, has_experts=has_experts)
            for has_experts, count in counts.items()
            if count
        )
        return kept + chunk.has_norm * self.micro_batch.norm_bytes

    def _kinds_of_blocks(self) -> set[bool]:
        """Return whether blocks have experts: both where there are both; of a rank without blocks, no."""
        kinds = {True for chunk in self.chunks if chunk.num_expert_blocks}
        return kinds | ({False} if any(c.num_blocks > c.num_expert_blocks for c in self.chunks) or not kinds else set())

    def _bucket(self, engine: EngineSize) -> int:
        return min(max(engine.layers), REDUCE_BUCKET_ELEMENTS) if self.bucket_elements is None else self.bucket_elements

    def _buckets_bytes(self, engines: Sequence[tuple[EngineSize, ZeroMemory]]) -> int:
        """Return buckets of the engines of one kind: only ZeRO-3 keeps the bucket of a chunk that is not running."""
        buckets = [zero.bucket_bytes(self._bucket(engine)) for engine, zero in engines]
        return (sum(buckets) if self.zero_stage == 3 else max(buckets)) * (2 if self.doubled_buckets else 1)
