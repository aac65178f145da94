"""The section `model`: sizes and switches of a decoder. Part of `schema.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama-3 scaling of rotary frequencies (Llama 3.1 model card; transformers 5.x `rope_type: llama3`)."""

    factor: float
    """How far low frequencies are stretched."""
    low_freq_factor: float
    """Wavelengths above original_context/low_freq_factor are stretched by `factor`."""
    high_freq_factor: float
    """Wavelengths below original_context/high_freq_factor are left alone."""
    original_max_sequence_length: int
    """Context length in tokens the unscaled frequencies were trained for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertsConfig:
    """Feed-forward layers of routed experts (arXiv:2401.06066): each token passes the shared ones and its top few."""

    num_experts: int
    """Routed experts of a block."""
    experts_per_token: int
    """Routed experts that each token passes."""
    expert_ffn_size: int
    """Width of one expert, routed or shared; SwiGLU as the dense layer."""
    num_shared_experts: int = 0
    """Experts that every token passes."""
    num_dense_layers: int = 0
    """Leading blocks with an ordinary feed-forward layer of ffn_size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder of the Llama 3 family (arXiv:2407.21783, table 3), dense or with experts."""

    vocab_size: int
    """Rows of the embedding, in tokens; at least the tokenizer's vocabulary."""
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Number of decoder blocks."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key/value heads (grouped-query attention, arXiv:2305.13245); divides num_heads."""
    ffn_size: int
    """Width of the SwiGLU feed-forward layer."""
    max_sequence_length: int
    """Longest sequence, in tokens, that positions are defined for."""
    rope_theta: float = 500_000.0
    """Base of the rotary frequencies (arXiv:2104.09864)."""
    rope_scaling: RopeScaling | None = None
    """Llama-3 frequency scaling, or null."""
    norm_epsilon: float = 1e-5
    """Added to the mean square in RMSNorm."""
    tied_embeddings: bool = False
    """Whether the output projection shares the embedding's weight."""
    init_std: float = 0.02
    """Standard deviation of initial weights; output projections of a block use init_std/sqrt(2*num_layers)."""
    experts: ExpertsConfig | None = None
    """Routed experts in place of one feed-forward layer; null is a dense model."""
    dropout: float = 0.0
    """Probability of dropping an element of a residual branch's output in training (arXiv:1706.03762, 5.4)."""
