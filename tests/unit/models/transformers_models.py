"""transformers' own class for a model of ours: what our decoder is compared with.

Its config is spelt out here once more, so that the tables of training/models/hugging_face_families.py are not compared
with themselves.
"""

from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from training.config.model_schema import ExpertsConfig, LatentAttentionConfig, RouterScore
from training.config.schema import ModelConfig


def transformers_model(config: ModelConfig) -> PreTrainedModel:
    """The model with weights that are random in every place, norms and routers' biases too."""
    torch.manual_seed(0)
    theirs = _build(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0.0, 0.1)
        for name, buffer in theirs.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.2)
    return theirs


def _build(config: ModelConfig) -> PreTrainedModel:
    if config.latent_attention is not None:
        assert config.experts is not None
        return _deepseek_v3(config, config.latent_attention, config.experts)
    if config.experts is not None:
        return _qwen3_moe(config, config.experts) if config.qk_norm else _mixtral(config, config.experts)
    if config.qk_norm:
        return Qwen3ForCausalLM(Qwen3Config(**_sizes(config), head_dim=config.attention_head_size))
    return LlamaForCausalLM(LlamaConfig(**_sizes(config), head_dim=config.head_size))


def _mixtral(config: ModelConfig, experts: ExpertsConfig) -> PreTrainedModel:
    assert experts.normalize_weights
    assert not experts.num_dense_layers
    sizes: dict[str, Any] = {**_sizes(config), "intermediate_size": experts.expert_ffn_size}
    return MixtralForCausalLM(
        MixtralConfig(**sizes, num_local_experts=experts.num_experts, num_experts_per_tok=experts.experts_per_token)
    )


def _qwen3_moe(config: ModelConfig, experts: ExpertsConfig) -> PreTrainedModel:
    sizes: dict[str, Any] = {**_sizes(config), "head_dim": config.attention_head_size}
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **sizes,
            num_experts=experts.num_experts,
            num_experts_per_tok=experts.experts_per_token,
            moe_intermediate_size=experts.expert_ffn_size,
            norm_topk_prob=experts.normalize_weights,
            mlp_only_layers=list(range(experts.num_dense_layers)),
        )
    )


def _deepseek_v3(config: ModelConfig, latent: LatentAttentionConfig, experts: ExpertsConfig) -> PreTrainedModel:
    assert experts.score is RouterScore.sigmoid
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **_sizes(config),
            q_lora_rank=latent.query_rank,
            kv_lora_rank=latent.kv_rank,
            qk_nope_head_dim=latent.head_size,
            qk_rope_head_dim=latent.rope_head_size,
            v_head_dim=latent.value_head_size,
            n_routed_experts=experts.num_experts,
            num_experts_per_tok=experts.experts_per_token,
            moe_intermediate_size=experts.expert_ffn_size,
            n_shared_experts=experts.num_shared_experts,
            first_k_dense_replace=experts.num_dense_layers,
            norm_topk_prob=experts.normalize_weights,
            routed_scaling_factor=experts.weight_scale,
            n_group=experts.num_groups,
            topk_group=experts.groups_per_token,
            num_mtp_layers=0,
        )
    )


def _sizes(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.max_sequence_length,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_parameters": _rope(config),
        "attention_dropout": 0.0,
    }


def _rope(config: ModelConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_sequence_length,
        }
    if config.yarn is not None:
        rope |= {
            "rope_type": "yarn",
            "factor": config.yarn.factor,
            "original_max_position_embeddings": config.yarn.original_max_sequence_length,
            "beta_fast": config.yarn.beta_fast,
            "beta_slow": config.yarn.beta_slow,
        }
        if config.yarn.mscale_all_dim is not None:
            rope |= {"mscale": config.yarn.mscale, "mscale_all_dim": config.yarn.mscale_all_dim}
    return rope
