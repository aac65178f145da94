"""Bytes of one rank of each pipeline stage under our own engines, by the plan that those engines follow. No torch.

The formulas are those of training/models/{zero_memory,activation_memory}.py, put together as training/models/memory.py
does for a config; here for a job, which has none. tests/unit/planner/test_memory.py holds the two together.
"""

from collections.abc import Sequence
from itertools import accumulate

from training.config.model_schema import ModelConfig
from training.config.schema import Precision
from training.config.schema import Recompute as ConfiguredRecompute
from training.models.activation_memory import ActivationMemory
from training.models.sizes import ChunkSize, chunk_size
from training.models.zero_memory import ZeroMemory
from training.planner.job import Job, NumberFormat, Recompute
from training.planner.model_config import model_config
from training.planner.pipeline_time import chunks_in_flight, chunks_of
from training.planner.software import OURS, Software
from training.planner.stage_memory import StageMemory
from training.planner.zero_buffers import bucket_elements

_PRECISION = {NumberFormat.bf16: Precision.bf16, NumberFormat.fp32: Precision.fp32}
_RECOMPUTE = {
    Recompute.none: ConfiguredRecompute.none,
    Recompute.selective: ConfiguredRecompute.selective,
    Recompute.full: ConfiguredRecompute.full,
}
_HIDDEN_ON_THE_WAY = 4
"""Hidden states and their gradients, arriving and leaving."""


def runs_in_our_engines(job: Job) -> bool:
    """Return whether an engine of this version runs a job: a dense model, cut over the pipeline and by ZeRO alone."""
    model, split = job.model, job.split
    return (
        job.software in OURS
        and model.experts is None
        and split.tensor == split.context == split.expert == 1
        and split.zero3_group is None
        and model.head_size * model.num_heads == model.hidden_size
        and model.ffn_matrices == 3
        and job.number_format in _PRECISION
        and split.recompute in _RECOMPUTE
    )


def own_memory(job: Job, software: Software, places: Sequence[int] | None = None) -> tuple[StageMemory, ...]:
    """Return the memory of a rank of each pipeline stage, of a job that `runs_in_our_engines`."""
    config, split = model_config(job), job.split
    chunks = chunks_of(job, software.cut)
    ends = list(accumulate(chunk.dense_blocks for chunk in chunks))
    # Layers are the embedding, the blocks, the norm and the head.
    starts = [0, *(end + 1 for end in ends[:-1])]
    stops = [*(end + 1 for end in ends[:-1]), job.model.num_blocks + 3]
    parts = [chunk_size(config, range(start, stop)) for start, stop in zip(starts, stops, strict=True)]
    return tuple(
        _stage(job, software, config, parts[place :: split.pipeline], place)
        for place in (range(split.pipeline) if places is None else places)
    )


def _stage(job: Job, software: Software, config: ModelConfig, chunks: list[ChunkSize], place: int) -> StageMemory:
    split, precision = job.split, _PRECISION[job.number_format]
    on_cpu = "CPU" in job.device.name.upper()
    zero = ZeroMemory(zero_stage=split.zero_stage, precision=precision, num_replicas=split.replicas)
    micro_batch = ActivationMemory(
        model=config,
        precision=precision,
        device="cpu" if on_cpu else job.device.name,
        num_tokens=job.batch.micro_batch * job.batch.sequence_length,
        logits_at_once_tokens=job.logits_at_once_tokens,
    )
    recompute = _RECOMPUTE[split.recompute]
    in_flight = chunks_in_flight(split, job.batch.accumulation, place)
    hidden = (in_flight + _HIDDEN_ON_THE_WAY) * micro_batch.hidden_bytes if split.pipeline > 1 else 0
    kept = [
        chunk.num_blocks * micro_batch.block_bytes(recompute) + chunk.has_norm * micro_batch.norm_bytes
        for chunk in chunks
    ]
    tensors = StageMemory(
        weights_bytes=sum(zero.weights_bytes(chunk.num_parameters) for chunk in chunks),
        gradients_bytes=sum(zero.gradients_bytes(chunk.num_parameters) for chunk in chunks),
        optimizer_bytes=sum(zero.optimizer_bytes(chunk.num_parameters) for chunk in chunks),
        gathered_bytes=zero.gathered_bytes(chunks, whole=split.gathers_per_step and split.pipeline > 1),
        activations_bytes=in_flight * max(kept),
        block_bytes=micro_batch.block_backward_bytes(recompute),
        logits_bytes=micro_batch.loss_bytes if chunks[-1].has_head else 0,
        buffers_bytes=zero.buffers_bytes(
            chunks, bucket_elements(job, software, chunks), doubled=split.pipeline > 1 and software.whole_buckets
        )
        + hidden,
        update_bytes=max(zero.update_bytes(chunk.num_parameters) for chunk in chunks),
    )
    if on_cpu:
        return tensors  # nothing is reserved ahead, and there is no driver
    return tensors.with_overhead((software.reserved_factor - 1) * tensors.tensors_bytes + software.context_bytes)
