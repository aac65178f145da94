"""A run's config -> the planner's jobs, one for each training stage. No torch."""

import os
from dataclasses import replace

from training.config.cluster_schema import NetworkConfig
from training.config.model_schema import ModelConfig
from training.config.schema import ClusterConfig, ParallelConfig, PipelineEngineKind, Precision, RunConfig
from training.config.schema import Recompute as ConfiguredRecompute
from training.errors import ConfigError
from training.models.sizes import attention_matrices, head_sizes
from training.planner.job import (
    Batch,
    Device,
    Experts,
    Job,
    ModelShape,
    Network,
    NumberFormat,
    Recompute,
    Split,
)
from training.planner.software import OURS

_FASTEST_FP32 = 2e14
"""FLOP/s that no accelerator reaches in fp32 matrix products: an MI300X has 163e12 (data sheet)."""
_RECOMPUTE = {
    ConfiguredRecompute.none: Recompute.none,
    ConfiguredRecompute.selective: Recompute.selective,
    ConfiguredRecompute.full: Recompute.full,
}


def job_of(config: RunConfig, training_stage: str) -> Job:
    """Return the job of a training stage; ZeRO-3 in a pipeline gathers per micro-batch, `with_regather` may change it.

    Raises:
        ConfigError: the cluster's config does not say what a plan needs.
    """
    layout, stage = config.layout_of(training_stage), config.stages[training_stage]
    return Job(
        model=shape_of(config.model),
        split=_split(config, training_stage, layout),
        batch=Batch(
            sequence_length=stage.sequence_length,
            micro_batch=stage.micro_batch_sequences,
            accumulation=config.accumulation_steps(training_stage),
        ),
        number_format=NumberFormat(config.precision),
        device=device_of(config.cluster, config.precision),
        network=network_of(config.cluster),
        software=software_of(layout),
        logits_at_once_tokens=layout.logits_at_once_tokens,
    )


def software_of(layout: ParallelConfig) -> str:
    """Return the planner's name of the engine that runs a layout."""
    deepspeed = layout.pipeline > 1 and layout.pipeline_engine is PipelineEngineKind.deepspeed
    return OURS[1] if deepspeed else OURS[0]


def shape_of(model: ModelConfig) -> ModelShape:
    """Return the sizes of a configured model, without blocks of multi-token prediction."""
    model = replace(model, prediction=None)
    experts = model.experts
    key_size, value_size = head_sizes(model)
    return ModelShape(
        num_blocks=model.num_layers,
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        # Latent attention makes keys and values of all heads, and caches them (training/models/attention.py).
        num_kv_heads=model.num_kv_heads if model.latent_attention is None else model.num_heads,
        head_size=key_size,
        value_head_size=value_size,
        attention_elements=sum(attention_matrices(model).values()),
        config=model,
        ffn_size=model.ffn_size,
        ffn_matrices=3,
        vocab_size=model.vocab_size,
        tied_embeddings=model.tied_embeddings,
        experts=experts
        and Experts(
            num_experts=experts.num_experts,
            experts_per_token=experts.experts_per_token,
            expert_ffn_size=experts.expert_ffn_size,
            num_shared_experts=experts.num_shared_experts,
            num_dense_blocks=experts.num_dense_layers,
        ),
    )


def device_of(cluster: ClusterConfig, precision: Precision) -> Device:
    """Return the cluster's device.

    Raises:
        ConfigError: its peak, or its memory or that memory's speed, is not known.
    """
    accelerator = cluster.accelerator
    for key in ("peak_flops_per_second", "memory_bytes_per_second"):
        if getattr(accelerator, key) is None:
            raise ConfigError(
                f"cluster.accelerator.{key}",
                None,
                f"a plan needs it, and the config does not say it of {accelerator.name}",
                "give it, or choose a cluster that has it (cluster=azure_nd_h100_v5); of this machine's CPU, "
                "launch.plan measures it (cluster=local)",
            )
    peak, bandwidth = accelerator.peak_flops_per_second, accelerator.memory_bytes_per_second
    assert peak is not None
    assert bandwidth is not None
    if precision is Precision.fp32 and peak > _FASTEST_FP32:
        raise ConfigError(
            "cluster.accelerator.peak_flops_per_second",
            peak,
            f"no {accelerator.name} multiplies fp32 so fast: that is its peak for bf16",
            "precision=bf16, or the data sheet's figure for fp32 (an H100: "
            "cluster.accelerator.peak_flops_per_second=67e12)",
        )
    peaks = {NumberFormat.fp32 if precision is Precision.fp32 else NumberFormat.bf16: peak}
    if precision is Precision.fp8:
        assert accelerator.fp8_flops_per_second is not None, "training/config/precision_checks.py"
        peaks[NumberFormat.fp8] = accelerator.fp8_flops_per_second
    return Device(
        name=accelerator.name,
        peak_flops=peaks,
        memory_bytes=memory_bytes_of(cluster),
        memory_bandwidth=bandwidth,
        power_watts=accelerator.power_watts,
    )


def memory_bytes_of(cluster: ClusterConfig) -> float:
    """Return the memory of one rank's device; on CPU the machine's, divided among its ranks.

    Raises:
        ConfigError: it is not known.
    """
    accelerator = cluster.accelerator
    if accelerator.memory_bytes is not None:
        return accelerator.memory_bytes
    if accelerator.device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / cluster.processes_per_node
    raise ConfigError(
        "cluster.accelerator.memory_bytes",
        None,
        f"a plan needs it, and the config does not say it of {accelerator.name}",
        "cluster.accelerator.memory_bytes=80e9 for one of 80 GB",
    )


def network_of(cluster: ClusterConfig) -> Network:
    """Return what connects the cluster's devices.

    Raises:
        ConfigError: the config does not say.
    """
    links: NetworkConfig | None = cluster.network
    if links is None:
        raise ConfigError(
            "cluster.network",
            None,
            "a plan needs the bandwidth between devices",
            "+cluster.network={node_bytes_per_second: 450e9, cluster_bytes_per_second: 50e9}, or a cluster that has it "
            "(cluster=azure_nd_h100_v5)",
        )
    return Network(
        devices_per_node=links.devices_per_fast_group or cluster.processes_per_node,
        node_bandwidth=links.node_bytes_per_second,
        cluster_bandwidth=links.cluster_bytes_per_second,
        devices_per_pod=links.devices_per_pod,
        oversubscription=links.oversubscription,
        node_latency_seconds=links.node_latency_seconds,
        cluster_latency_seconds=links.cluster_latency_seconds,
    )


def as_program(job: Job, software: str | None) -> Job:
    """Return the same job as another program would run it, one of planner.software.SOFTWARE; null leaves ours."""
    if software is None:
        return job
    return replace(job, software=software, split=replace(job.split, tensor_shards_sequence=software not in OURS))


def with_regather(job: Job, *, per_step: bool) -> Job:
    """Return the same job with ZeRO-3's weights gathered once a step, or for every micro-batch."""
    return replace(job, split=replace(job.split, gathers_per_step=per_step))


def _split(config: RunConfig, training_stage: str, layout: ParallelConfig) -> Split:
    by_hand = layout.layers_per_pipeline_stage
    return Split(
        replicas=config.num_replicas(training_stage),
        pipeline=layout.pipeline,
        chunks_per_rank=layout.chunks_per_rank,
        blocks_per_chunk=None if by_hand is None else tuple(by_hand),
        tensor=layout.tensor,
        tensor_shards_sequence=False,  # as rehearsed (training/rehearsal/axis_program.py); no engine runs it
        context=layout.sequence,
        context_exchange="heads",
        expert=layout.expert,
        zero_stage=layout.zero_stage,
        zero3_group=layout.zero_secondary_ranks,
        recompute=_RECOMPUTE[layout.recompute],
    )
