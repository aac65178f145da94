"""What DeepSpeed's ZeRO keeps on layouts that no engine of ours runs yet, by the formulas of those that do. No torch.

The same as training/models/{rank_memory,zero_memory}.py, for parts of a model that are cut over tensor ranks.
tests/unit/planner/test_memory.py holds the two together where both apply.
"""

from collections.abc import Sequence

from training.config.deepspeed_config import REDUCE_BUCKET_ELEMENTS
from training.config.schema import Precision
from training.models.sizes import EngineSize
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
    """Return what an update needs besides gradients and state: engines update one after the other."""
    parts = [zero.update_bytes(round(count)) for zero, count in _parts(job, dense, expert)]
    return max(parts) if job.split.expert > 1 else sum(parts)


def gathered_bytes(job: Job, chunks: Sequence[Chunk]) -> float:
    """Return weights that ZeRO-3 has gathered, besides the shard."""
    whole = job.split.gathers_per_step and job.split.pipeline > 1
    return sum(zero.gathered_bytes(sizes, whole=whole) for zero, sizes in _engines(job, chunks) if sizes)


def reduction_bytes(job: Job, software: Software, chunks: Sequence[Chunk]) -> float:
    """Return buckets, and gradients on their way through them; of a rank whose chunks are all empty, nothing."""
    kept, passing = 0.0, [0.0]
    doubled = job.split.pipeline > 1 and software.whole_buckets
    for zero, sizes in _engines(job, chunks):
        counts = [bucket_elements(job, software, size) for size in sizes]
        buckets = [zero.bucket_bytes(count) for count in counts]
        if buckets:
            kept += (sum(buckets) if job.split.zero_stage == 3 else max(buckets)) * (2 if doubled else 1)
        passing += [zero.reduction_bytes(count, size) for count, size in zip(counts, sizes, strict=True)]
    return kept + max(passing)


def has_own_buckets(job: Job, software: Software) -> bool:
    """Return whether engines collect gradients in buckets of a layer's size, as our chunks do (engine/chunk.py)."""
    return (job.split.pipeline > 1 or job.split.expert > 1) and not software.whole_buckets


def bucket_elements(job: Job, software: Software, size: EngineSize) -> int:
    """Return the elements of an engine's bucket."""
    own = has_own_buckets(job, software)
    return min(max(size.layers), REDUCE_BUCKET_ELEMENTS) if own else REDUCE_BUCKET_ELEMENTS


def _parts(job: Job, dense: float, expert: float) -> list[tuple[ZeroMemory, float]]:
    split = job.split
    same_experts = max(1, split.shards // split.expert)
    return [(zero_of(job, split.shards), dense), (zero_of(job, same_experts), expert)]


def _engines(job: Job, chunks: Sequence[Chunk]) -> list[tuple[ZeroMemory, list[EngineSize]]]:
    """Return ZeRO's formulas and the sizes of all chunks' layers, and of experts where these are apart."""
    held = [chunk for chunk in chunks if chunk.dense_blocks + chunk.expert_blocks or chunk.has_embedding]
    layers = [_layers(job, chunk) for chunk in held]
    if job.split.expert == 1:
        return [(zero_of(job, job.split.shards), layers)]
    routed = round(block_parameters(job, is_dense=False)[1])
    experts = [
        EngineSize(layers=(routed,) * chunk.expert_blocks, largest_parameter=routed // job.model.ffn_matrices)
        for chunk in held
        if chunk.expert_blocks
    ]
    same_experts = max(1, job.split.shards // job.split.expert)
    return [(zero_of(job, job.split.shards), layers), (zero_of(job, same_experts), experts)]


def _layers(job: Job, chunk: Chunk) -> EngineSize:
    """Return the size of a chunk's layers on one rank, without experts that are apart."""
    model, tensor = job.model, job.split.tensor
    table = round(table_parameters(job))
    blocks = [round(sum(block_parameters(job, is_dense=True)))] * chunk.dense_blocks
    outer, routed = block_parameters(job, is_dense=False)
    apart = job.split.expert > 1
    blocks += [round(outer if apart else outer + routed)] * chunk.expert_blocks
    tables = [table] * (chunk.has_embedding + chunk.has_head)
    widths = [model.hidden_size, *([model.ffn_size] if chunk.dense_blocks else [])]
    largest = [round(model.hidden_size * max(widths) / tensor), *tables]
    if chunk.expert_blocks and not apart:
        largest.append(round(routed / model.ffn_matrices))
    return EngineSize(layers=tuple(tables + blocks), largest_parameter=max(largest))
