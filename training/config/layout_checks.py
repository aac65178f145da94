"""Whether world size, pipeline, ZeRO stage, batch and model fit each other; each refusal computes the nearest fit."""

from training.config.axis_checks import check_axes
from training.config.model_checks import check_sizes
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


def check_layout(config: RunConfig, training_stage: str) -> None:
    """Check one training stage's layout and batch against the world and the model.

    Raises:
        ConfigError: they do not fit.
    """
    layout = config.layout_of(training_stage)
    own = config.stages[training_stage].parallel is not None
    key = f"stages.{training_stage}.parallel" if own else "parallel"
    check_axes(config, layout, key)
    check_pipeline(config, training_stage, key)
    _check_precision(config, layout, key)
    _check_batch(config, training_stage)


def _check_precision(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    if config.precision is Precision.bf16 and layout.zero_stage == 0:
        raise ConfigError(
            f"{key}.zero_stage",
            layout.zero_stage,
            "with precision=bf16 DeepSpeed 0.19.8 has no well-trodden optimizer without ZeRO",
            f"{key}.zero_stage=1 works, or precision=fp32",
        )


def _check_batch(config: RunConfig, training_stage: str) -> None:
    stage, replicas = config.stages[training_stage], config.num_replicas(training_stage)
    batch, micro, key = stage.global_batch_sequences, stage.micro_batch_sequences, f"stages.{training_stage}"
    unit = micro * replicas
    if batch % unit == 0:
        return
    batches = sorted({max(unit, batch // unit * unit), (batch // unit + 1) * unit}, key=lambda n: abs(n - batch))
    remedy = f"{key}.global_batch_sequences={batches[0]} works"
    remedy += f" ({batches[1]} too)" if len(batches) > 1 else ""
    if batch % replicas == 0:
        micros = divisors(batch // replicas)
        fit = closest(micro, micros)
        remedy += f", or {key}.micro_batch_sequences={fit} ({listed(micros)} divide {batch // replicas})"
    raise ConfigError(
        f"{key}.global_batch_sequences",
        batch,
        f"is no multiple of micro_batch_sequences={micro} times {replicas} data replicas = {unit}",
        remedy,
    )
