"""Bytes of one rank of each pipeline stage under our own engines, by the plan that those engines follow. No torch.

The formulas are those of training/models/rank_memory.py, which also serve a config (training/models/memory.py); here
they serve a job, which has none. tests/unit/planner/test_memory.py holds the two together.
"""

from collections.abc import Sequence
from dataclasses import fields
from itertools import accumulate

from training.config.deepspeed_config import REDUCE_BUCKET_ELEMENTS
from training.config.model_schema import ModelConfig
from training.config.schema import Precision
from training.config.schema import Recompute as ConfiguredRecompute
from training.models.activation_memory import ActivationMemory
from training.models.rank_memory import RankMemory, RankParts
from training.models.sizes import ChunkSize, chunk_size
from training.planner.job import Job, NumberFormat, Recompute
from training.planner.model_config import model_config
from training.planner.pipeline_time import chunks_in_flight, chunks_of
from training.planner.software import OURS, Software
from training.planner.stage_memory import StageMemory
from training.planner.zero_buffers import has_own_buckets

_PARTS = tuple(field.name for field in fields(RankMemory))
_PRECISION = {NumberFormat.bf16: Precision.bf16, NumberFormat.fp32: Precision.fp32}
_RECOMPUTE = {
    Recompute.none: ConfiguredRecompute.none,
    Recompute.selective: ConfiguredRecompute.selective,
    Recompute.full: ConfiguredRecompute.full,
}


def runs_in_our_engines(job: Job) -> bool:
    """Return whether the engines' plan holds for a job: a model that they build, without a tensor axis and hpZ."""
    split = job.split
    return (
        job.software in OURS
        and split.tensor == 1
        and (split.context == 1 or split.context_exchange == "heads")
        and split.zero3_group is None
        and job.model.ffn_matrices == 3
        and job.number_format in _PRECISION
        and split.recompute in _RECOMPUTE
    )


def own_memory(job: Job, software: Software, places: Sequence[int] | None = None) -> tuple[StageMemory, ...]:
    """Return the memory of a rank of each pipeline stage, of a job that `runs_in_our_engines`."""
    config, split = model_config(job), job.split
    chunks = chunks_of(job, software.cut)
    ends = list(accumulate(chunk.dense_blocks + chunk.expert_blocks for chunk in chunks))
    # Layers are the embedding, the blocks, the norm and the head.
    starts = [0, *(end + 1 for end in ends[:-1])]
    stops = [*(end + 1 for end in ends[:-1]), job.model.num_blocks + 3]
    parts = [
        chunk_size(config, range(start, stop), expert=split.expert) for start, stop in zip(starts, stops, strict=True)
    ]
    return tuple(
        _stage(job, software, config, parts[place :: split.pipeline], place)
        for place in (range(split.pipeline) if places is None else places)
    )


def _stage(job: Job, software: Software, config: ModelConfig, chunks: list[ChunkSize], place: int) -> StageMemory:
    split, precision = job.split, _PRECISION[job.number_format]
    on_cpu = "CPU" in job.device.name.upper()
    held = RankParts(
        chunks=chunks,
        zero_stage=split.zero_stage,
        precision=precision,
        num_shards=split.shards,
        expert=split.expert,
        micro_batch=ActivationMemory(
            model=config,
            precision=precision,
            device="cpu" if on_cpu else job.device.name,
            num_tokens=job.batch.micro_batch * job.batch.sequence_length // split.context,
            logits_at_once_tokens=job.logits_at_once_tokens,
            sequence=split.context,
            expert=split.expert,
        ),
        recompute=_RECOMPUTE[split.recompute],
        in_flight=chunks_in_flight(split, job.batch.accumulation, place),
        pipeline=split.pipeline,
        gathers_per_step=split.gathers_per_step and split.pipeline > 1,
        bucket_elements=None if has_own_buckets(job, software) else REDUCE_BUCKET_ELEMENTS,
        doubled_buckets=split.pipeline > 1 and software.whole_buckets,
    ).memory()
    tensors = StageMemory(**{name: getattr(held, name) for name in _PARTS})
    if on_cpu:
        return tensors  # nothing is reserved ahead, and there is no driver
    return tensors.with_overhead((software.reserved_factor - 1) * tensors.tensors_bytes + software.context_bytes)
