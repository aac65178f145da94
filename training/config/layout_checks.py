"""Whether world size, pipeline, ZeRO stage, batch and model fit each other; each refusal computes the nearest fit."""

from training.config.axis_checks import check_axes
from training.config.batch_checks import check_batches, check_ramp
from training.config.model_checks import check_sizes
from training.config.pipeline_checks import check_pipeline
from training.config.schema import ParallelConfig, Precision, RunConfig
from training.config.tokenizer_size import tokenizer_vocab_size
from training.errors import ConfigError


def check_model(config: RunConfig) -> None:
    """Check that the model's sizes divide and that the tokenizer fits it.

    Raises:
        ConfigError: heads, hidden size or vocabulary do not fit.
    """
    check_sizes(config.model)
    tokens = tokenizer_vocab_size(config.data)
    if tokens is not None and config.model.vocab_size < tokens:
        raise ConfigError(
            "model.vocab_size",
            config.model.vocab_size,
            f"the tokenizer has {tokens} tokens and each needs a row of the embedding",
            f"model.vocab_size={tokens} works, or data.tokenizer_vocab_size={config.model.vocab_size}"
            if config.data.tokenizer is None
            else f"model.vocab_size={tokens} works, or another tokenizer than data.tokenizer={config.data.tokenizer}",
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
