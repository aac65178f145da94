"""Whether world size, pipeline, ZeRO stage, batch and model fit each other; each refusal computes the nearest fit."""

from training.config.schema import ParallelConfig, Precision, RunConfig
from training.errors import ConfigError


def check_model(config: RunConfig) -> None:
    """Check that the model's sizes divide.

    Raises:
        ConfigError: heads, hidden size or vocabulary do not fit.
    """
    model = config.model
    if model.num_heads % model.num_kv_heads:
        fit = _closest(model.num_kv_heads, _divisors(model.num_heads))
        raise ConfigError(
            "model.num_kv_heads",
            model.num_kv_heads,
            f"{model.num_heads} query heads cannot share {model.num_kv_heads} key/value heads evenly",
            f"model.num_kv_heads={fit} works (divisors of {model.num_heads}: {_listed(_divisors(model.num_heads))})",
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
    tokens = config.data.tokenizer_vocab_size
    if model.vocab_size < tokens:
        raise ConfigError(
            "model.vocab_size",
            model.vocab_size,
            f"the tokenizer has {tokens} tokens and each needs a row of the embedding",
            f"model.vocab_size={tokens} works, or data.tokenizer_vocab_size={model.vocab_size}",
        )
    scaling = model.rope_scaling
    if scaling is not None and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise ConfigError(
            "model.rope_scaling.low_freq_factor",
            scaling.low_freq_factor,
            f"must be below high_freq_factor={scaling.high_freq_factor}: the band between them is interpolated",
            f"model.rope_scaling.low_freq_factor={scaling.high_freq_factor / 4} works",
        )


def check_layout(config: RunConfig, training_stage: str) -> None:
    """Check one training stage's layout and batch against the world and the model.

    Raises:
        ConfigError: they do not fit.
    """
    layout = config.layout_of(training_stage)
    own = config.stages[training_stage].parallel is not None
    key = f"stages.{training_stage}.parallel" if own else "parallel"
    _check_pipeline(config, layout, key)
    _check_zero_stage(config, layout, key)
    _check_layers(config, layout, key)
    _check_batch(config, training_stage)


def _check_pipeline(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    world, pipeline, num_layers = config.world_size, layout.pipeline, config.model.num_layers
    fits = [divisor for divisor in _divisors(world) if divisor <= num_layers]
    fit = _closest(pipeline, fits)
    if pipeline > num_layers:
        raise ConfigError(
            f"{key}.pipeline",
            pipeline,
            f"the model has {num_layers} blocks and every pipeline stage needs at least one",
            f"{key}.pipeline={fit} works with {world} ranks",
        )
    if world % pipeline:
        nodes = config.cluster.num_nodes
        processes = next(
            n for n in range(config.cluster.processes_per_node + 1, world + pipeline + 1) if nodes * n % pipeline == 0
        )
        raise ConfigError(
            f"{key}.pipeline",
            pipeline,
            f"{world} rank{'s' if world > 1 else ''} cannot be cut into {pipeline} equal pipeline stages",
            f"{key}.pipeline={fit} works ({_listed(fits)} do), or cluster.processes_per_node={processes}",
        )


def _check_zero_stage(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    if layout.pipeline > 1 and layout.zero_stage != 1:
        reason = (
            "DeepSpeed's PipelineEngine allows 0 and 1; pipeline stages over ZeRO-2 or 3 are refused for now"
            if layout.zero_stage > 1
            else "pipelines run with zero_stage 1 only: one well-trodden path, and it never needs more memory"
        )
        raise ConfigError(
            f"{key}.zero_stage",
            layout.zero_stage,
            f"with pipeline={layout.pipeline}: {reason}",
            f"{key}.zero_stage=1 works, or {key}.pipeline=1 keeps zero_stage={layout.zero_stage}",
        )
    if config.precision is Precision.bf16 and layout.zero_stage == 0:
        raise ConfigError(
            f"{key}.zero_stage",
            layout.zero_stage,
            "with precision=bf16 DeepSpeed 0.19.8 has no well-trodden optimizer without ZeRO",
            f"{key}.zero_stage=1 works, or precision=fp32",
        )


def _check_layers(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    by_hand, num_layers = layout.layers_per_pipeline_stage, config.model.num_layers
    if by_hand is None:
        return
    if len(by_hand) == layout.pipeline and sum(by_hand) == num_layers and min(by_hand) >= 1:
        return
    each, rest = divmod(num_layers, layout.pipeline)
    even = [each + (index < rest) for index in range(layout.pipeline)]
    raise ConfigError(
        f"{key}.layers_per_pipeline_stage",
        by_hand,
        f"must be {layout.pipeline} numbers, each at least 1, that sum to {num_layers} blocks, not {sum(by_hand)}",
        f"{key}.layers_per_pipeline_stage=[{','.join(map(str, even))}] works, or null to balance by cost",
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
        micros = _divisors(batch // replicas)
        fit = _closest(micro, micros)
        remedy += f", or {key}.micro_batch_sequences={fit} ({_listed(micros)} divide {batch // replicas})"
    raise ConfigError(
        f"{key}.global_batch_sequences",
        batch,
        f"is no multiple of micro_batch_sequences={micro} times {replicas} data replicas = {unit}",
        remedy,
    )


def _divisors(number: int) -> list[int]:
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def _closest(wanted: int, allowed: list[int]) -> int:
    return min(allowed, key=lambda n: (abs(n - wanted), -n))


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown}, …"
