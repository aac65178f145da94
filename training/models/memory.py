"""The memory plan of one rank, and what `parallel.regather=auto` decides from it. No torch.

Model chunk c of a pipeline of P stages lives on pipeline stage c % P; each chunk is an engine of its own. What the
driver, the communication library and the allocator's fragments take is not counted: `auto` leaves a tenth for it.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from training.config.deepspeed_config import REDUCE_BUCKET_ELEMENTS, deepspeed_config
from training.config.schema import ParallelConfig, PipelineEngineKind, Regather, RunConfig
from training.errors import ConfigError
from training.models.activation_memory import ActivationMemory
from training.models.sizes import ChunkSize, chunk_size
from training.models.zero_memory import ZeroMemory
from training.parallel.schedule import make_schedule, peak_in_flight

PLANNED_SHARE = 0.9
"""Share of a device's memory that `auto` plans with."""
_GIB = 2**30
_HIDDEN_ON_THE_WAY = 4
"""Hidden states and their gradients, arriving and leaving."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Bytes of one rank, each at its own highest."""

    weights_bytes: int
    """Weights in the run's dtype: a shard under ZeRO-3, else whole."""
    gradients_bytes: int
    """Accumulated gradients."""
    optimizer_bytes: int
    """fp32 master weights and both moments."""
    gathered_bytes: int
    """Weights that ZeRO-3 has gathered, besides the shard."""
    activations_bytes: int
    """Kept for the backward of all micro-batches in flight."""
    block_bytes: int
    """The backward of one block, beyond what was kept for it."""
    logits_bytes: int
    """Logits and loss of one micro-batch; 0 but on the last pipeline stage."""
    buffers_bytes: int
    """Gradients on their way through DeepSpeed's bucket, hidden states on theirs between pipeline stages."""
    update_bytes: int
    """What AdamW needs besides gradients and state."""

    @property
    def resident_bytes(self) -> int:
        """Weights, gradients and optimizer state: what every micro-batch finds."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        """The highest sum at any time: loss and blocks' backwards take turns, as do micro-batches and the update."""
        micro_batches = self.gathered_bytes + self.activations_bytes + max(self.block_bytes, self.logits_bytes)
        return self.resident_bytes + self.buffers_bytes + max(micro_batches, self.update_bytes)

    def describe(self) -> str:
        """Return a line for people."""
        parts = [f"{name.removesuffix('_bytes')} {count / _GIB:.1f}" for name, count in asdict(self).items()]
        return f"{self.total_bytes / _GIB:.1f} GiB at the highest ({', '.join(parts)})"


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
    chunks = [chunk_size(config.model, part) for part in parts[pipeline_stage :: layout.pipeline]]
    zero = ZeroMemory(
        zero_stage=layout.zero_stage,
        precision=config.precision,
        num_replicas=config.num_replicas(training_stage),
    )
    micro_batch = ActivationMemory(
        model=config.model,
        precision=config.precision,
        device=config.cluster.accelerator.device,
        num_tokens=stage.micro_batch_sequences * stage.sequence_length,
        logits_at_once_tokens=layout.logits_at_once_tokens,
    )
    in_flight = _peak_in_flight(
        layout.schedule.value, layout.pipeline, layout.chunks_per_rank, config.accumulation_steps(training_stage)
    )[pipeline_stage]
    # The output of each micro-batch in flight is where its backward starts.
    hidden = (in_flight + _HIDDEN_ON_THE_WAY) * micro_batch.hidden_bytes if layout.pipeline > 1 else 0
    return RankMemory(
        weights_bytes=sum(zero.weights_bytes(chunk.num_parameters) for chunk in chunks),
        gradients_bytes=sum(zero.gradients_bytes(chunk.num_parameters) for chunk in chunks),
        optimizer_bytes=sum(zero.optimizer_bytes(chunk.num_parameters) for chunk in chunks),
        gathered_bytes=zero.gathered_bytes(chunks, whole=regather is Regather.per_step),
        activations_bytes=in_flight
        * max(
            chunk.num_blocks * micro_batch.block_bytes(layout.recompute) + chunk.has_norm * micro_batch.norm_bytes
            for chunk in chunks
        ),
        block_bytes=micro_batch.block_backward_bytes(layout.recompute),
        logits_bytes=micro_batch.loss_bytes if chunks[-1].has_head else 0,
        buffers_bytes=zero.buffers_bytes(
            chunks,
            [_bucket_elements(config, training_stage, chunk) for chunk in chunks],
            doubled=layout.pipeline > 1 and layout.pipeline_engine is PipelineEngineKind.deepspeed,
        )
        + hidden,
        update_bytes=max(zero.update_bytes(chunk.num_parameters) for chunk in chunks),
    )


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


def _bucket_elements(config: RunConfig, training_stage: str, chunk: ChunkSize) -> int:
    layout = config.layout_of(training_stage)
    if layout.runs_in_chunks:
        return min(max(chunk.layers), REDUCE_BUCKET_ELEMENTS)  # engine/chunk.py
    return deepspeed_config(config, training_stage)["zero_optimization"]["reduce_bucket_size"]


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
