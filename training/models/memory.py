"""The memory plan of one rank, and what `parallel.regather=auto` decides from it. No torch.

Model chunk c of a pipeline of P stages lives on pipeline stage c % P; each chunk is an engine of its own. What the
driver, the communication library and the allocator's fragments take is not counted: `auto` leaves a tenth for it.
"""

import math
import os
from collections.abc import Sequence
from functools import lru_cache

from training.config.deepspeed_config import deepspeed_config
from training.config.schema import ParallelConfig, PipelineEngineKind, Regather, RunConfig
from training.errors import ConfigError
from training.models.activation_memory import ActivationMemory
from training.models.rank_memory import RankMemory, RankParts
from training.models.sizes import chunk_size
from training.parallel.schedule import make_schedule, peak_in_flight

PLANNED_SHARE = 0.9
"""Share of a device's memory that `auto` plans with."""
_GIB = 2**30


def rank_memory(
    config: RunConfig, training_stage: str, *, pipeline_stage: int, regather: Regather, parts: Sequence[range]
) -> RankMemory:
    """Return the memory plan of the ranks of one pipeline stage.

    Args:
        config: the run.
        training_stage: its training stage.
        pipeline_stage: place in the pipeline.
        regather: per_step or per_microbatch; without effect below ZeRO-3.
        parts: layer ranges of all chunks of the model, in order; chunk c lives on pipeline stage c % pipeline.
    """
    layout, stage = config.layout_of(training_stage), config.stages[training_stage]
    in_flight = _peak_in_flight(
        layout.schedule.value, layout.pipeline, layout.chunks_per_rank, config.accumulation_steps(training_stage)
    )
    own_buckets = layout.runs_in_chunks
    zero = deepspeed_config(config, training_stage)["zero_optimization"]
    return RankParts(
        chunks=[
            chunk_size(config.model, part, expert=layout.expert) for part in parts[pipeline_stage :: layout.pipeline]
        ],
        zero_stage=layout.zero_stage,
        precision=config.precision,
        num_shards=config.num_shards(training_stage),
        expert=layout.expert,
        micro_batch=ActivationMemory(
            model=config.model,
            precision=config.precision,
            device=config.cluster.accelerator.device,
            num_tokens=stage.micro_batch_sequences * stage.sequence_length // layout.sequence,
            logits_at_once_tokens=layout.logits_at_once_tokens,
            sequence=layout.sequence,
            expert=layout.expert,
        ),
        recompute=layout.recompute,
        in_flight=in_flight[pipeline_stage],
        pipeline=layout.pipeline,
        gathers_per_step=regather is Regather.per_step,
        bucket_elements=None if own_buckets else zero["reduce_bucket_size"],
        doubled_buckets=layout.pipeline > 1 and layout.pipeline_engine is PipelineEngineKind.deepspeed,
    ).memory()


def choose_regather(
    config: RunConfig, training_stage: str, *, parts: Sequence[range], memory_bytes: float
) -> tuple[Regather, str]:
    """Return per_step or per_microbatch for a training stage, and the reason in words.

    per_step gathers the weights of a pipeline stage once, however many micro-batches follow: the least traffic.
    per_microbatch has no more than two layers whole at a time: the least memory.

    Args:
        config: the run.
        training_stage: its training stage.
        parts: layer ranges of all chunks of the model, in order; chunk c lives on pipeline stage c % pipeline.
        memory_bytes: memory of one device.
    """
    layout = config.layout_of(training_stage)
    if layout.regather is not Regather.auto:
        return layout.regather, f"{layout.regather}: parallel.regather says so"
    if layout.zero_stage < 3:
        return Regather.per_step, f"per_step: ZeRO-{layout.zero_stage} keeps weights whole, there is nothing to gather"
    if layout.pipeline == 1:
        return Regather.per_microbatch, "per_microbatch: without a pipeline it is DeepSpeed's own way"

    def fullest(regather: Regather) -> int:
        return max(
            rank_memory(config, training_stage, pipeline_stage=place, regather=regather, parts=parts).total_bytes
            for place in range(layout.pipeline)
        )

    whole, lean = fullest(Regather.per_step), fullest(Regather.per_microbatch)
    needs = f"{_size(whole)} of {_size(memory_bytes)} with the weights kept gathered"
    if whole <= PLANNED_SHARE * memory_bytes:
        return Regather.per_step, f"per_step: the fullest pipeline stage needs {needs}"
    reason = f"per_microbatch: the fullest pipeline stage would need {needs}, {_size(lean)} without"
    if lean > PLANNED_SHARE * memory_bytes:
        reason += (
            f"; even that is more than {100 * PLANNED_SHARE:.0f} %, it will hardly fit: smaller micro-batches, "
            "parallel.recompute=full, more pipeline stages or more replicas need less"
        )
    return Regather.per_microbatch, reason


def device_memory_bytes(config: RunConfig, layout: ParallelConfig) -> float:
    """Return the memory of one rank's device; infinity where it is unknown and the layout does not depend on it.

    On CPU the machine's memory is divided among its ranks.

    Raises:
        ConfigError: regather=auto would be decided by it, and the cluster's config does not name it.
    """
    accelerator = config.cluster.accelerator
    if accelerator.memory_bytes is not None:
        return accelerator.memory_bytes
    if accelerator.device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / config.cluster.processes_per_node
    if layout.regather is not Regather.auto or layout.zero_stage < 3 or layout.pipeline == 1:
        return math.inf
    raise ConfigError(
        "cluster.accelerator.memory_bytes",
        "null",
        f"parallel.regather=auto depends on the memory of one {accelerator.name}, which the config does not say",
        "cluster.accelerator.memory_bytes=80e9 for one of 80 GB, or parallel.regather=per_microbatch",
    )


@lru_cache(maxsize=32)
def _peak_in_flight(name: str, pipeline: int, chunks_per_rank: int, num_micro_batches: int) -> tuple[int, ...]:
    schedule = make_schedule(
        name,
        num_pipeline_stages=pipeline,
        chunks_per_rank=chunks_per_rank,
        num_micro_batches=num_micro_batches,
    )
    return peak_in_flight(schedule)


def _size(num_bytes: float) -> str:
    """Return a size for people; a toy model's is not 0.0 GiB."""
    return f"{num_bytes / _GIB:.1f} GiB" if num_bytes >= _GIB / 10 else f"{1024 * num_bytes / _GIB:.1f} MiB"
