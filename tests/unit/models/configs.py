"""Small models of every kind that a config can ask for."""

from dataclasses import replace
from typing import Any

from training.config.model_schema import (
    ExpertsConfig,
    LatentAttentionConfig,
    ModelConfig,
    RopeScaling,
    RouterScore,
    YarnScaling,
)


def model(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 48,
        "num_layers": 3,
        "num_heads": 6,
        "num_kv_heads": 2,
        "ffn_size": 80,
        "max_sequence_length": 64,
        "init_std": 0.1,
    }
    return ModelConfig(**(values | changes))


LLAMA3_SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_sequence_length=16)

KINDS = {
    "grouped queries": model(),
    "one head per query": model(num_kv_heads=6),
    "one key head": model(num_kv_heads=1),
    "tied": model(tied_embeddings=True),
    "llama3 rope": model(rope_scaling=LLAMA3_SCALING, rope_theta=10_000.0),
    "tied llama3 rope": model(tied_embeddings=True, rope_scaling=LLAMA3_SCALING),
}

YARN = YarnScaling(factor=4.0, original_max_sequence_length=16, beta_fast=2.0, beta_slow=0.5)
DEEPSEEK_YARN = YarnScaling(factor=4.0, original_max_sequence_length=16, beta_fast=2.0, mscale=0.7, mscale_all_dim=1.3)

SOFTMAX_EXPERTS = ExpertsConfig(num_experts=6, experts_per_token=2, expert_ffn_size=32)
SIGMOID_EXPERTS = ExpertsConfig(
    num_experts=8,
    experts_per_token=3,
    expert_ffn_size=32,
    num_shared_experts=2,
    num_dense_layers=1,
    score=RouterScore.sigmoid,
    weight_scale=2.5,
    num_groups=4,
    groups_per_token=2,
    bias_update_rate=0.001,
)
LATENT = LatentAttentionConfig(kv_rank=20, query_rank=28, head_size=12, rope_head_size=8, value_head_size=10)


def deepseek(**changes: Any) -> ModelConfig:
    return model(**({"num_kv_heads": 6, "latent_attention": LATENT, "experts": SIGMOID_EXPERTS} | changes))


OTHER_KINDS = {
    "llama yarn": model(yarn=YARN, rope_theta=10_000.0),
    "llama wide heads": model(head_size=16),
    "qwen3": model(head_size=16, qk_norm=True, tied_embeddings=True),
    "qwen3 yarn": model(qk_norm=True, yarn=YARN, rope_theta=1e6),
    "mixtral": model(experts=SOFTMAX_EXPERTS, ffn_size=32),
    "mixtral llama3 rope": model(experts=SOFTMAX_EXPERTS, ffn_size=32, rope_scaling=LLAMA3_SCALING),
    "qwen3_moe": model(head_size=16, qk_norm=True, experts=SOFTMAX_EXPERTS),
    "qwen3_moe dense first": model(
        qk_norm=True, experts=replace(SOFTMAX_EXPERTS, num_dense_layers=1, normalize_weights=False), yarn=YARN
    ),
    "deepseek_v3": deepseek(),
    "deepseek_v3 yarn": deepseek(yarn=DEEPSEEK_YARN, rope_theta=10_000.0),
    "deepseek_v3 direct queries": deepseek(
        latent_attention=replace(LATENT, query_rank=None),
        experts=replace(SIGMOID_EXPERTS, num_groups=1, groups_per_token=1, normalize_weights=False, num_dense_layers=0),
    ),
}
"""Of the families with experts, latent attention, norms of heads or YaRN; the name begins with the family's."""

ALL_KINDS = KINDS | OTHER_KINDS
