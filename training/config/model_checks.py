"""Whether the sizes and switches of a model fit each other; each refusal computes the nearest fit."""

import math

from training.config.model_schema import ExpertsConfig, LatentAttentionConfig, ModelConfig
from training.config.nearest_numbers import closest, divisors, listed
from training.errors import ConfigError


def check_sizes(model: ModelConfig) -> None:
    """Check that a model's sizes divide, whatever it is trained on.

    Raises:
        ConfigError: heads, hidden size, experts or frequency bands do not fit.
    """
    if model.latent_attention is not None:
        _check_latent_attention(model, model.latent_attention)
    else:
        _check_heads(model)
    if model.experts is not None:
        _check_experts(model, model.experts)
    _check_rope(model)


def _check_heads(model: ModelConfig) -> None:
    if model.num_heads % model.num_kv_heads:
        fit = closest(model.num_kv_heads, divisors(model.num_heads))
        raise ConfigError(
            "model.num_kv_heads",
            model.num_kv_heads,
            f"{model.num_heads} query heads cannot share {model.num_kv_heads} key/value heads evenly",
            f"model.num_kv_heads={fit} works (divisors of {model.num_heads}: {listed(divisors(model.num_heads))})",
        )
    if model.head_size is not None:
        _check_even("model.head_size", model.head_size)
        return
    unit = 2 * model.num_heads
    if model.hidden_size % unit:
        fit = max(1, round(model.hidden_size / unit)) * unit
        raise ConfigError(
            "model.hidden_size",
            model.hidden_size,
            f"{model.num_heads} heads need an even size each: rotary positions turn pairs",
            f"model.hidden_size={fit} works (multiples of {unit}), or any with model.head_size given",
        )


def _check_latent_attention(model: ModelConfig, latent: LatentAttentionConfig) -> None:
    if model.num_kv_heads != model.num_heads:
        raise ConfigError(
            "model.num_kv_heads",
            model.num_kv_heads,
            "with latent attention each query head has keys and values of its own",
            f"model.num_kv_heads={model.num_heads} works",
        )
    if model.head_size is not None:
        raise ConfigError(
            "model.head_size",
            model.head_size,
            "with latent attention heads have the sizes of model.latent_attention, and this would be ignored",
            "model.head_size=null works",
        )
    if model.qk_norm:
        raise ConfigError(
            "model.qk_norm",
            "true",
            "latent attention norms the small vectors that queries and keys are made from, and this would be ignored",
            "model.qk_norm=false works",
        )
    _check_even("model.latent_attention.rope_head_size", latent.rope_head_size)


def _check_even(key: str, size: int) -> None:
    if size % 2:
        raise ConfigError(key, size, "must be even: rotary positions turn pairs", f"{key}={size + 1} works")


def _check_experts(model: ModelConfig, experts: ExpertsConfig) -> None:
    if experts.experts_per_token > experts.num_experts:
        raise ConfigError(
            "model.experts.experts_per_token",
            experts.experts_per_token,
            f"a block has {experts.num_experts} experts",
            f"model.experts.experts_per_token={experts.num_experts} is the most",
        )
    if experts.num_dense_layers >= model.num_layers:
        raise ConfigError(
            "model.experts.num_dense_layers",
            experts.num_dense_layers,
            f"the model has {model.num_layers} blocks, and none would be left for experts",
            f"model.experts.num_dense_layers={model.num_layers - 1} is the most, or model.experts=null",
        )
    _check_groups(experts)


def _check_groups(experts: ExpertsConfig) -> None:
    """Check the groups of experts; a group is ranked by its two best (arXiv:2412.19437, section 2.1.2)."""
    even = [groups for groups in divisors(experts.num_experts) if groups == 1 or 2 * groups <= experts.num_experts]
    if experts.num_groups not in even:
        raise ConfigError(
            "model.experts.num_groups",
            experts.num_groups,
            f"{experts.num_experts} experts cannot be dealt to {experts.num_groups} groups of two or more evenly",
            f"model.experts.num_groups={closest(experts.num_groups, even)} works ({listed(even)} do)",
        )
    if experts.groups_per_token > experts.num_groups:
        raise ConfigError(
            "model.experts.groups_per_token",
            experts.groups_per_token,
            f"there are model.experts.num_groups={experts.num_groups}",
            f"model.experts.groups_per_token={experts.num_groups} is the most",
        )
    group = experts.num_experts // experts.num_groups
    least = -(-experts.experts_per_token // group)
    if experts.groups_per_token < least:
        raise ConfigError(
            "model.experts.groups_per_token",
            experts.groups_per_token,
            f"{experts.experts_per_token} experts of a token do not lie in so few groups of {group}",
            f"model.experts.groups_per_token={least} is the least, or "
            f"model.experts.experts_per_token={group * experts.groups_per_token}",
        )


def _check_rope(model: ModelConfig) -> None:
    scaling, yarn = model.rope_scaling, model.yarn
    if scaling is not None and yarn is not None:
        raise ConfigError(
            "model.yarn",
            "given",
            "model.rope_scaling scales the same frequencies",
            "model.rope_scaling=null works, or model.yarn=null",
        )
    if scaling is not None and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise ConfigError(
            "model.rope_scaling.low_freq_factor",
            scaling.low_freq_factor,
            f"must be below high_freq_factor={scaling.high_freq_factor}: the band between them is interpolated",
            f"model.rope_scaling.low_freq_factor={scaling.high_freq_factor / 4} works",
        )
    if yarn is None:
        return
    if model.rope_theta <= 1:
        raise ConfigError(
            "model.rope_theta", model.rope_theta, "YaRN sorts frequencies by its powers", "model.rope_theta=10000 works"
        )
    if yarn.beta_slow >= yarn.beta_fast:
        raise ConfigError(
            "model.yarn.beta_slow",
            yarn.beta_slow,
            f"must be below beta_fast={yarn.beta_fast}: the pairs that turn between them are interpolated",
            f"model.yarn.beta_slow={yarn.beta_fast / 32} works",
        )
    least = math.floor(2 * math.pi * yarn.beta_slow) + 1
    if yarn.original_max_sequence_length < least:
        raise ConfigError(
            "model.yarn.original_max_sequence_length",
            yarn.original_max_sequence_length,
            f"no pair turns beta_slow={yarn.beta_slow} times in so few tokens",
            f"model.yarn.original_max_sequence_length={least} is the least",
        )
