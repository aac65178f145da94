"""Whether world size, pipeline, ZeRO stage, batch and model fit each other; each refusal computes the nearest fit."""

from training.config.axis_checks import check_axes
from training.config.batch_checks import check_batches, check_ramp
from training.config.model_schema import ExpertsConfig, ModelConfig
from training.config.nearest_numbers import closest, divisors, listed
from training.config.pipeline_checks import check_pipeline
from training.config.schema import ParallelConfig, Precision, RunConfig
from training.errors import ConfigError


def check_model(config: RunConfig) -> None:
    """Check that the model's sizes divide and that the tokenizer fits it.

    Raises:
        ConfigError: heads, hidden size or vocabulary do not fit.
    """
    check_sizes(config.model)
    tokens = config.data.tokenizer_vocab_size
    if config.model.vocab_size < tokens:
        raise ConfigError(
            "model.vocab_size",
            config.model.vocab_size,
            f"the tokenizer has {tokens} tokens and each needs a row of the embedding",
            f"model.vocab_size={tokens} works, or data.tokenizer_vocab_size={config.model.vocab_size}",
        )


def check_sizes(model: ModelConfig) -> None:
    """Check that a model's sizes divide, whatever it is trained on.

    Raises:
        ConfigError: heads, hidden size or frequency bands do not fit.
    """
    if model.num_heads % model.num_kv_heads:
        fit = closest(model.num_kv_heads, divisors(model.num_heads))
        raise ConfigError(
            "model.num_kv_heads",
            model.num_kv_heads,
            f"{model.num_heads} query heads cannot share {model.num_kv_heads} key/value heads evenly",
            f"model.num_kv_heads={fit} works (divisors of {model.num_heads}: {listed(divisors(model.num_heads))})",
        )
    unit = 2 * model.num_heads
    if model.hidden_size % unit:
        fit = max(1, round(model.hidden_size / unit)) * unit
        raise ConfigError(
            "model.hidden_size",
            model.hidden_size,
            f"{model.num_heads} heads need an even size each: rotary positions turn pairs",
            f"model.hidden_size={fit} works (multiples of {unit})",
        )
    if model.experts is not None:
        _check_experts(model, model.experts)
    scaling = model.rope_scaling
    if scaling is not None and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise ConfigError(
            "model.rope_scaling.low_freq_factor",
            scaling.low_freq_factor,
            f"must be below high_freq_factor={scaling.high_freq_factor}: the band between them is interpolated",
            f"model.rope_scaling.low_freq_factor={scaling.high_freq_factor / 4} works",
        )


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


def check_layout(config: RunConfig, training_stage: str) -> None:
    """Check one training stage's layout and batch against the world and the model.

    Raises:
        ConfigError: they do not fit.
    """
    layout = config.layout_of(training_stage)
    own = config.stages[training_stage].parallel is not None
    key = f"stages.{training_stage}.parallel" if own else "parallel"
    check_axes(config, training_stage, key)
    check_pipeline(config, training_stage, key)
    _check_precision(config, layout, key)
    check_ramp(config, training_stage)
    check_batches(config, training_stage)


def _check_precision(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    if config.precision is Precision.bf16 and layout.zero_stage == 0:
        raise ConfigError(
            f"{key}.zero_stage",
            layout.zero_stage,
            "with precision=bf16 DeepSpeed 0.19.8 has no well-trodden optimizer without ZeRO",
            f"{key}.zero_stage=1 works, or precision=fp32",
        )
