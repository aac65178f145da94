"""What the planner plans: one training stage as numbers, whoever runs it. No torch, no config.

A `Job` is made of a run's config (`planner/from_config.py`), of a published run (`planner/published.py`), or by the
search. So what is checked against published figures is what plans our own runs.
"""

from dataclasses import dataclass
from enum import StrEnum

from training.config.model_schema import ModelConfig


class Recompute(StrEnum):
    """Which activations are computed again in backward."""

    none = "none"
    attention = "attention"
    """Scores and softmax of attention alone (arXiv:2205.05198, section 5); nothing to gain with fused attention."""
    selective = "selective"
    """All but matrix products and attention."""
    full = "full"
    """Whole blocks."""


class NumberFormat(StrEnum):
    """Format of the operands of matrix products."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp8 = "fp8"


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """The feed-forward layer of a block as routed experts."""

    num_experts: int
    """Routed experts of a block."""
    experts_per_token: int
    """Routed experts that each token passes (top-k)."""
    expert_ffn_size: int
    """Width of one expert."""
    num_shared_experts: int = 0
    """Experts that every token passes, of the same width."""
    num_dense_blocks: int = 0
    """Leading blocks with an ordinary feed-forward layer of the model's ffn_size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a decoder."""

    num_blocks: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn_size: int
    ffn_matrices: int
    """3 for SwiGLU, 2 for a plain one."""
    vocab_size: int
    tied_embeddings: bool = False
    experts: Experts | None = None
    value_head_size: int | None = None
    """Width of a head's values; null is head_size."""
    attention_elements: int | None = None
    """Elements of an attention layer's matrices; null is what heads of these sizes have."""
    config: ModelConfig | None = None
    """What our software builds it from; null of a model that is known by these sizes alone."""

    @property
    def value_size(self) -> int:
        """Width of a head's values."""
        return self.head_size if self.value_head_size is None else self.value_head_size

    @property
    def attention_parameters(self) -> int:
        """Elements of an attention layer's matrices."""
        if self.attention_elements is not None:
            return self.attention_elements
        heads = self.num_heads + self.num_kv_heads
        return self.hidden_size * heads * (self.head_size + self.value_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How ranks share the work. World size = pipeline * tensor * context * replicas."""

    replicas: int = 1
    """Data replicas, that is ranks with different samples; experts are spread over them and `context`."""
    pipeline: int = 1
    chunks_per_rank: int = 1
    """Model chunks of each rank of a pipeline; more than 1 is interleaved (arXiv:2104.04473, section 2.2)."""
    tensor: int = 1
    tensor_shards_sequence: bool = True
    """Whether what lies between tensor-parallel regions is sharded over tokens (arXiv:2205.05198, section 4.2.2)."""
    context: int = 1
    """Ranks that share the tokens of each sequence."""
    context_exchange: str = "heads"
    """heads: all-to-all between tokens and heads (Ulysses, arXiv:2309.14509); keys: keys and values go round."""
    expert: int = 1
    """Ranks that a block's experts are spread over."""
    blocks_per_chunk: tuple[int, ...] | None = None
    """Blocks of each chunk in model order, by hand; null cuts as the software does."""
    zero_stage: int = 1
    """What replicas (and context) shard: 0 nothing, 1 optimizer state, 2 + gradients, 3 + weights."""
    zero3_group: int | None = None
    """ZeRO-3: ranks that the weights are gathered from, fewer than all for hpZ (arXiv:2306.10209); null is all."""
    gathers_per_step: bool = False
    """ZeRO-3 in a pipeline: weights are gathered once a step and stay, rather than for every micro-batch and pass."""
    recompute: Recompute = Recompute.none

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pipeline * self.tensor * self.context * self.replicas

    @property
    def shards(self) -> int:
        """Ranks that ZeRO divides the state of a dense layer among."""
        return self.replicas * self.context


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One optimizer step."""

    sequence_length: int
    micro_batch: int
    """Sequences that one replica runs at once."""
    accumulation: int
    """Micro-batches of each replica."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One accelerator, by its data sheet."""

    name: str
    peak_flops: dict[NumberFormat, float]
    """Dense matrix products, FLOP/s."""
    memory_bytes: float
    memory_bandwidth: float
    """Bytes per second."""
    power_watts: float | None = None
    """Of the device alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What connects the devices."""

    devices_per_node: int
    """Devices that the fast links (NVLink) join."""
    node_bandwidth: float
    """Bytes per second and direction of one device to the others of its node."""
    cluster_bandwidth: float
    """Bytes per second and direction of one device's network card."""
    devices_per_pod: int | None = None
    """Devices that reach each other without oversubscription; null is all."""
    oversubscription: float = 1.0
    """How many times less bandwidth there is between pods than within."""
    node_latency_seconds: float = 3e-6
    cluster_latency_seconds: float = 8e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A training stage on a cluster."""

    model: ModelShape
    split: Split
    batch: Batch
    number_format: NumberFormat
    device: Device
    network: Network
    software: str = "autarky"
    """Name of one of `planner.software.SOFTWARE`: what the program keeps, overlaps and fuses."""
    logits_at_once_tokens: int | None = None
    """Of our engines: tokens of a rank's micro-batch whose logits may exist at a time; None is all of them."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, all replicas together."""
        batch = self.batch
        return batch.sequence_length * batch.micro_batch * batch.accumulation * self.split.replicas
