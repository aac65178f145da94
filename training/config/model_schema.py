"""The section `model`: sizes and switches of a decoder. Part of `schema.py`."""

from dataclasses import dataclass
from enum import StrEnum


class RouterScore(StrEnum):
    """How a router's logits become scores: softmax over all experts (Mixtral), or each by itself (DeepSeek-V3)."""

    softmax = "softmax"
    sigmoid = "sigmoid"


class BalanceScope(StrEnum):
    """Over which tokens the load-balancing loss is taken: each sequence (DeepSeek-V3) or micro-batch (Switch)."""

    sequence = "sequence"
    micro_batch = "micro_batch"


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
class YarnScaling:
    """YaRN scaling of rotary frequencies (arXiv:2309.00071; transformers 5.x `rope_type: yarn`)."""

    factor: float
    """Context after over context before."""
    original_max_sequence_length: int
    """Context length in tokens the unscaled frequencies were trained for."""
    beta_fast: float = 32.0
    """Pairs that turn more often than this within the original context are left alone."""
    beta_slow: float = 1.0
    """Pairs that turn less often are stretched by `factor`; those between are interpolated."""
    mscale: float | None = None
    """DeepSeek's: with mscale_all_dim, what cosines and sines are scaled by; null is the paper's 0.1 ln(factor) + 1."""
    mscale_all_dim: float | None = None
    """DeepSeek's: latent attention's logits are scaled by (0.1 mscale_all_dim ln(factor) + 1)²; null leaves them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentAttentionConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): keys and values from a small vector."""

    kv_rank: int
    """Width of the vector that keys and values are made from."""
    query_rank: int | None = None
    """Width of the vector that queries are made from; null projects them directly."""
    head_size: int
    """Width of a head's queries and keys without positions."""
    rope_head_size: int
    """Width of the part of queries and keys that is rotated; keys share one among all heads."""
    value_head_size: int
    """Width of a head's values."""


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
    """Experts that every token passes; together they are one feed-forward layer of that many times the width."""
    num_dense_layers: int = 0
    """Leading blocks with an ordinary feed-forward layer of ffn_size."""
    score: RouterScore = RouterScore.softmax
    """How the router's logits become scores."""
    normalize_weights: bool = True
    """Whether a token's weights of its experts sum to 1; else they are its scores."""
    weight_scale: float = 1.0
    """Factor of the weights (DeepSeek-V3: 2.5)."""
    num_groups: int = 1
    """Groups of experts; a token's experts come from groups_per_token of them (arXiv:2412.19437, section 2.1.2)."""
    groups_per_token: int = 1
    """Groups that each token's experts come from: those whose two best scores sum highest."""
    bias_update_rate: float = 0.0
    """Balancing without a loss (arXiv:2408.15664): after each step the bias by which an expert is chosen, not weighed,
    moves so far, up if the expert got less than its share and down if more. 0 has no bias."""
    balance_loss: float = 0.0
    """Coefficient of the load-balancing loss (arXiv:2101.03961, equation 4); 0 has none."""
    balance_scope: BalanceScope = BalanceScope.sequence
    """Over which tokens that loss is taken."""
    z_loss: float = 0.0
    """Coefficient of the router z-loss (arXiv:2202.08906, equation 5); 0 has none."""
    capacity_factor: float | None = None
    """Most tokens of one expert in a micro-batch, as a multiple of an even share; what is beyond is not passed by that
    expert. Null drops nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionConfig:
    """Multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2), in training only."""

    num_blocks: int = 1
    """Blocks after the model's own, each of which predicts one token further ahead."""
    loss_weight: float = 0.3
    """Weight of the mean of their losses beside the model's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder: Llama 3's blocks (arXiv:2407.21783, table 3), with experts or latent attention where asked for."""

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
    head_size: int | None = None
    """Width of one head; null is hidden_size / num_heads."""
    qk_norm: bool = False
    """Whether each head's queries and keys pass an RMSNorm before they are rotated (Qwen3, arXiv:2505.09388)."""
    latent_attention: LatentAttentionConfig | None = None
    """Multi-head latent attention; null is grouped-query attention."""
    ffn_size: int
    """Width of the SwiGLU feed-forward layer."""
    max_sequence_length: int
    """Longest sequence, in tokens, that positions are defined for."""
    rope_theta: float = 500_000.0
    """Base of the rotary frequencies (arXiv:2104.09864)."""
    rope_scaling: RopeScaling | None = None
    """Llama-3 frequency scaling, or null."""
    yarn: YarnScaling | None = None
    """YaRN frequency scaling, or null; at most one of the two."""
    norm_epsilon: float = 1e-5
    """Added to the mean square in RMSNorm."""
    tied_embeddings: bool = False
    """Whether the output projection shares the embedding's weight."""
    init_std: float = 0.02
    """Standard deviation of initial weights; output projections of a block use init_std/sqrt(2*num_layers)."""
    experts: ExpertsConfig | None = None
    """Routed experts in place of one feed-forward layer; null is a dense model."""
    prediction: PredictionConfig | None = None
    """Blocks that also predict the tokens after the next one; null has none."""
    dropout: float = 0.0
    """Probability of dropping an element of a residual branch's output in training (arXiv:1706.03762, 5.4)."""

    @property
    def num_prediction_blocks(self) -> int:
        """Blocks of multi-token prediction."""
        return 0 if self.prediction is None else self.prediction.num_blocks

    @property
    def shares_embedding(self) -> bool:
        """Whether the embedding's weight is used at the model's other end too."""
        return self.tied_embeddings or self.prediction is not None

    @property
    def attention_head_size(self) -> int:
        """Width of one head's queries and keys that is rotated."""
        if self.latent_attention is not None:
            return self.latent_attention.rope_head_size
        return self.head_size or self.hidden_size // self.num_heads
