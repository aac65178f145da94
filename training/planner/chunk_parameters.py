"""Parameters of a pipeline stage's chunks on one rank. No torch."""

from collections.abc import Sequence

from training.planner.job import Job
from training.planner.operators import block_parameters, table_parameters
from training.planner.pipeline_time import Chunk


def chunk_parameters(job: Job, chunks: Sequence[Chunk]) -> tuple[float, float]:
    """Return parameters on one rank of a pipeline stage's chunks: those that all replicas have, and of its experts."""
    dense = expert = 0.0
    for chunk in chunks:
        if chunk.dense_blocks:
            dense += chunk.dense_blocks * block_parameters(job, is_dense=True)[0]
        if chunk.expert_blocks:
            outer, routed = block_parameters(job, is_dense=False)
            dense, expert = dense + chunk.expert_blocks * outer, expert + chunk.expert_blocks * routed
    has_embedding = any(chunk.has_embedding for chunk in chunks)
    has_head = any(chunk.has_head for chunk in chunks)
    tables = has_embedding + has_head - (has_embedding and has_head and job.model.tied_embeddings)
    return dense + tables * table_parameters(job), expert
