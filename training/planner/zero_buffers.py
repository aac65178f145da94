"""What DeepSpeed's ZeRO keeps on layouts that no engine of ours runs yet, by the formulas of those that do. No torch.

The same as training/models/zero_memory.py, for parts of a model that are themselves cut over tensor or expert ranks.
tests/unit/planner/test_memory.py holds the two together where both apply.
"""

from collections.abc import Sequence

from training.config.deepspeed_config import REDUCE_BUCKET_ELEMENTS
from training.config.schema import Precision
from training.models.sizes import ChunkSize
from training.models.zero_memory import ZeroMemory
from training.planner.job import Job, NumberFormat
from training.planner.operators import block_parameters, table_parameters
from training.planner.pipeline_time import Chunk
from training.planner.software import Software

_PRECISION = {NumberFormat.fp32: Precision.fp32}


def zero_of(job: Job, num_replicas: int) -> ZeroMemory:
    """Return ZeRO's formulas for parameters that so many ranks share."""
    precision = _PRECISION.get(job.number_format, Precision.bf16)
    return ZeroMemory(zero_stage=job.split.zero_stage, precision=precision, num_replicas=num_replicas)


def gradients_bytes(job: Job, dense: float, expert: float) -> float:
    """Return accumulated gradients of a rank."""
    return sum(zero.gradients_bytes(round(count)) for zero, count in _parts(job, dense, expert))


def update_bytes(job: Job, dense: float, expert: float) -> float:
    """Return what an update needs besides gradients and state."""
    return sum(zero.update_bytes(round(count)) for zero, count in _parts(job, dense, expert))


def gathered_bytes(job: Job, chunks: Sequence[Chunk]) -> float:
    """Return weights that ZeRO-3 has gathered, besides the shard."""
    split = job.split
    whole = split.gathers_per_step and split.pipeline > 1
    return zero_of(job, split.shards).gathered_bytes([_size(job, chunk) for chunk in chunks], whole=whole)


def reduction_bytes(job: Job, software: Software, chunks: Sequence[Chunk]) -> float:
    """Return buckets, and gradients on their way through them; of a rank whose chunks are all empty, nothing."""
    sizes = [_size(job, chunk) for chunk in chunks if chunk.dense_blocks + chunk.expert_blocks or chunk.has_embedding]
    if not sizes:
        return 0.0
    doubled = job.split.pipeline > 1 and software.whole_buckets
    return zero_of(job, job.split.shards).buffers_bytes(sizes, bucket_elements(job, software, sizes), doubled=doubled)


def bucket_elements(job: Job, software: Software, sizes: Sequence[ChunkSize]) -> list[int]:
    """Return elements of each chunk's bucket: those of a layer in our own pipeline (training/engine/chunk.py)."""
    by_layer = job.split.pipeline > 1 and not software.whole_buckets
    return [min(max(size.layers), REDUCE_BUCKET_ELEMENTS) if by_layer else REDUCE_BUCKET_ELEMENTS for size in sizes]


def _parts(job: Job, dense: float, expert: float) -> list[tuple[ZeroMemory, float]]:
    split = job.split
    same_experts = max(1, split.shards // split.expert)
    return [(zero_of(job, split.shards), dense), (zero_of(job, same_experts), expert)]


def _size(job: Job, chunk: Chunk) -> ChunkSize:
    """Return the size of a chunk's part on one rank."""
    model, tensor = job.model, job.split.tensor
    table = round(table_parameters(job))
    blocks = [round(sum(block_parameters(job, is_dense=True)))] * chunk.dense_blocks
    blocks += [round(sum(block_parameters(job, is_dense=False)))] * chunk.expert_blocks
    tables = [table] * (chunk.has_embedding + chunk.has_head)
    experts = model.experts
    width = model.ffn_size if chunk.dense_blocks or experts is None else experts.expert_ffn_size
    largest = round(model.hidden_size * max(model.hidden_size, width) / tensor)
    return ChunkSize(
        layers=tuple(tables + blocks),
        largest_parameter=max([largest, *tables]),
        num_blocks=len(blocks),
        has_norm=chunk.has_head,
        has_head=chunk.has_head,
    )
