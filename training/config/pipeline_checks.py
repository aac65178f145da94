"""Whether a pipeline's stages, chunks, schedule, ZeRO stage and engine fit each other, the world and the model."""

from training.config.batch_checks import check_rounds
from training.config.nearest_numbers import closest, divisors, listed
from training.config.schema import (
    AttentionImplementation,
    ParallelConfig,
    PipelineEngineKind,
    PipelineSchedule,
    Regather,
    RunConfig,
)
from training.errors import ConfigError


def check_pipeline(config: RunConfig, training_stage: str, key: str) -> None:
    """Check one training stage's pipeline; `key` is where its layout stands in the config.

    Raises:
        ConfigError: it cannot be cut or scheduled so.
    """
    layout = config.layout_of(training_stage)
    _check_stages(config, layout, key)
    _check_chunks(config, layout, key)
    _check_layers(config, layout, key)
    _check_zero_stage(layout, key)
    _check_regather(layout, key)
    _check_engine(config, layout, key)
    _check_passes(config, training_stage, key)
    check_rounds(config, training_stage, key)


def _check_stages(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    world, pipeline, num_layers = config.world_size, layout.pipeline, config.model.num_layers
    fits = [divisor for divisor in divisors(world) if divisor <= num_layers]
    fit = closest(pipeline, fits)
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
            f"{key}.pipeline={fit} works ({listed(fits)} do), or cluster.processes_per_node={processes}",
        )


def _check_chunks(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    chunks, interleaved = layout.chunks_per_rank, layout.schedule is PipelineSchedule.interleaved
    if layout.pipeline == 1 and (interleaved or chunks > 1):
        raise ConfigError(
            f"{key}.schedule" if interleaved else f"{key}.chunks_per_rank",
            layout.schedule if interleaved else chunks,
            "there is no pipeline to schedule: pipeline=1",
            f"{key}.pipeline=2, or {key}.schedule=1f1b and {key}.chunks_per_rank=1",
        )
    if interleaved != (chunks > 1):
        reason = "interleaving needs at least 2 chunks per rank" if interleaved else "1f1b runs one chunk per rank"
        fit, other = (2, "1f1b") if interleaved else (1, "interleaved")
        raise ConfigError(
            f"{key}.chunks_per_rank",
            chunks,
            f"with schedule={layout.schedule}: {reason}",
            f"{key}.chunks_per_rank={fit}, or {key}.schedule={other}",
        )
    most = config.model.num_layers // layout.pipeline
    if chunks > most:
        raise ConfigError(
            f"{key}.chunks_per_rank",
            chunks,
            f"{layout.pipeline} pipeline stages of {chunks} chunks need {layout.pipeline * chunks} blocks, "
            f"the model has {config.model.num_layers}",
            f"{key}.chunks_per_rank={most} works" if most > 1 else f"{key}.schedule=1f1b {key}.chunks_per_rank=1",
        )


def _check_layers(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    by_hand, num_layers = layout.layers_per_pipeline_stage, config.model.num_layers
    if by_hand is None:
        return
    num_parts = layout.pipeline * layout.chunks_per_rank
    if len(by_hand) == num_parts and sum(by_hand) == num_layers and min(by_hand) >= 1:
        return
    each, rest = divmod(num_layers, num_parts)
    even = [each + (index < rest) for index in range(num_parts)]
    raise ConfigError(
        f"{key}.layers_per_pipeline_stage",
        by_hand,
        f"must be {num_parts} numbers, each at least 1, that sum to {num_layers} blocks, not {sum(by_hand)}",
        f"{key}.layers_per_pipeline_stage=[{','.join(map(str, even))}] works, or null to balance by cost",
    )


def _check_zero_stage(layout: ParallelConfig, key: str) -> None:
    if layout.pipeline > 1 and layout.zero_stage == 0:
        raise ConfigError(
            f"{key}.zero_stage",
            layout.zero_stage,
            f"pipelines (pipeline={layout.pipeline}) run with zero_stage 1, 2 or 3; 1 never needs more memory than 0",
            f"{key}.zero_stage=1 works, or {key}.pipeline=1 keeps zero_stage=0",
        )


def _check_regather(layout: ParallelConfig, key: str) -> None:
    if layout.regather is Regather.auto:
        return
    if layout.pipeline == 1 or layout.zero_stage != 3:
        raise ConfigError(
            f"{key}.regather",
            layout.regather,
            f"only a pipeline under ZeRO-3 gathers weights by it (pipeline={layout.pipeline}, "
            f"zero_stage={layout.zero_stage})",
            f"{key}.regather=auto, or {key}.pipeline=2 and {key}.zero_stage=3",
        )


def _check_engine(config: RunConfig, layout: ParallelConfig, key: str) -> None:
    if layout.pipeline_engine is PipelineEngineKind.autarky:
        return
    remedy = f"{key}.pipeline_engine=autarky can"
    for axis, size in (("sequence", layout.sequence), ("expert", layout.expert)):
        if size > 1:
            raise ConfigError(
                f"{key}.{axis}",
                size,
                f"with pipeline_engine={layout.pipeline_engine}: DeepSpeed's engine knows pipeline and data only",
                f"{remedy}, or {key}.{axis}=1",
            )
    if layout.zero_stage > 1:
        raise ConfigError(
            f"{key}.zero_stage",
            layout.zero_stage,
            f"with pipeline_engine={layout.pipeline_engine}: DeepSpeed's PipelineEngine refuses ZeRO-2 and ZeRO-3",
            f"{remedy}, or {key}.zero_stage=1",
        )
    if layout.schedule is not PipelineSchedule.one_forward_one_backward:
        raise ConfigError(
            f"{key}.schedule",
            layout.schedule,
            f"with pipeline_engine={layout.pipeline_engine}: DeepSpeed's PipelineEngine knows 1f1b only",
            f"{remedy}, or {key}.schedule=1f1b and {key}.chunks_per_rank=1",
        )


def _check_passes(config: RunConfig, training_stage: str, key: str) -> None:
    """Check that nothing is asked of DeepSpeed's PipelineEngine that layers have to know of each micro-batch."""
    layout, stage = config.layout_of(training_stage), config.stages[training_stage]
    if layout.pipeline == 1 or layout.pipeline_engine is PipelineEngineKind.autarky:
        return
    remedy = f"{key}.pipeline_engine=autarky can"
    if config.model.dropout > 0:
        raise ConfigError(
            "model.dropout",
            config.model.dropout,
            "masks follow the identity of each sample, which does not travel through DeepSpeed's PipelineEngine",
            f"{remedy}, or model.dropout=0",
        )
    if stage.masks_documents:
        name = f"stages.{training_stage}.document_mask"
        reason = "which tokens belong together does not travel through DeepSpeed's PipelineEngine"
        raise ConfigError(name, "true", reason, f"{remedy}, or {name}=false")
    if config.model.prediction is not None:
        reason = "blocks of multi-token prediction need each micro-batch's tokens, which DeepSpeed's engine keeps"
        raise ConfigError("model.prediction", "…", reason, f"{remedy}, or model.prediction=null")
    if layout.loss_chunk_tokens is not None:
        raise ConfigError(
            f"{key}.loss_chunk_tokens",
            layout.loss_chunk_tokens,
            "DeepSpeed's PipelineEngine gives targets to its loss function alone, which needs whole logits",
            f"{remedy}, or {key}.loss_chunk_tokens=null",
        )
    if layout.attention is not AttentionImplementation.auto:
        reason = "with DeepSpeed's PipelineEngine it is always torch's scaled_dot_product_attention"
        raise ConfigError(f"{key}.attention", layout.attention, reason, f"{remedy}, or {key}.attention=auto")
