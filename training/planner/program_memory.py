"""Bytes of one rank of each pipeline stage under any program, from what its profile says it keeps. No torch.

The count of kept activations follows arXiv:2205.05198, section 4, for blocks with fused attention and gated
feed-forward layers: every operator's saved tensors, each once.
"""

from collections.abc import Sequence

from training.models.activation_memory import loss_bytes
from training.planner.chunk_parameters import chunk_parameters
from training.planner.constants import Constants
from training.planner.job import Job, NumberFormat, Recompute
from training.planner.operators import (
    block_parameters,
    element_bytes,
    hidden_bytes,
    rank_tokens,
    table_parameters,
    token_shards,
)
from training.planner.pipeline_time import Chunk, chunks_in_flight, chunks_of
from training.planner.software import AttentionKernel, Software
from training.planner.stage_memory import StageMemory
from training.planner.zero_buffers import gathered_bytes, gradients_bytes, reduction_bytes, update_bytes

_FP32_BYTES = 4


def program_memory(job: Job, constants: Constants, places: Sequence[int] | None = None) -> tuple[StageMemory, ...]:
    """Return the memory of a rank of each pipeline stage, or of those at some places."""
    software = constants.software[job.software]
    kernel = constants.kernels[software.attention]
    chunks = chunks_of(job, software.cut)
    pipeline = job.split.pipeline
    return tuple(
        _stage(job, software, kernel, chunks[place::pipeline], place)
        for place in (range(pipeline) if places is None else places)
    )


def _stage(job: Job, software: Software, kernel: AttentionKernel, chunks: tuple[Chunk, ...], place: int) -> StageMemory:
    split = job.split
    dense, expert = chunk_parameters(job, chunks)
    same_experts = max(1, split.shards // split.expert)

    def held(from_zero_stage: int) -> float:
        """Parameters of which a rank holds something that ZeRO shards from this stage on."""
        if split.zero_stage < from_zero_stage:
            return dense + expert
        return dense / split.shards + expert / same_experts

    in_flight = chunks_in_flight(split, job.batch.accumulation, place)
    most = max(chunks, key=lambda chunk: chunk.dense_blocks + chunk.expert_blocks)
    kept = sum(
        count * kept_bytes(job, software, kernel, split.recompute, is_dense=is_dense)
        for count, is_dense in ((most.dense_blocks, True), (most.expert_blocks, False))
        if count
    )
    is_dense = not any(chunk.expert_blocks for chunk in chunks)
    has_head = any(chunk.has_head for chunk in chunks)
    logits = _logits_bytes(job, software) if has_head else 0.0
    if software.is_deepspeed:
        gradients, update = gradients_bytes(job, dense, expert), update_bytes(job, dense, expert)
        buffers, gathered = _buffers_bytes(job) + reduction_bytes(job, software, chunks), gathered_bytes(job, chunks)
    else:
        gradients = software.gradient_bytes * held(2)
        update = _update_bytes(job, software, dense + expert, held(1))
        buffers, gathered = _buffers_bytes(job), _gathered_bytes(job, software, chunks)
    tensors = StageMemory(
        weights_bytes=software.weight_bytes * held(3) + _second_copy_bytes(job, software, dense),
        gradients_bytes=gradients,
        optimizer_bytes=software.state_bytes * held(1),
        gathered_bytes=gathered,
        activations_bytes=in_flight * kept,
        block_bytes=_block_bytes(job, software, kernel, is_dense=is_dense),
        logits_bytes=logits,
        buffers_bytes=buffers,
        update_bytes=update,
    )
    overhead = (software.reserved_factor - 1) * tensors.tensors_bytes + software.context_bytes
    return tensors.with_overhead(overhead)


def _logits_bytes(job: Job, software: Software) -> float:
    """Return the most that logits and loss of one micro-batch need."""
    if not software.is_deepspeed:
        return rank_tokens(job) * job.model.vocab_size / job.split.tensor * software.logit_bytes
    return loss_bytes(
        num_tokens=int(rank_tokens(job)),
        vocab_size=job.model.vocab_size // job.split.tensor,
        hidden_size=job.model.hidden_size,
        element_bytes=element_bytes(job),
        at_once_tokens=job.logits_at_once_tokens,
    )


def kept_bytes(job: Job, software: Software, kernel: AttentionKernel, recompute: Recompute, *, is_dense: bool) -> float:
    """Return what one block keeps of one micro-batch from its forward to its backward on one rank."""
    model, split, tokens, shards = job.model, job.split, rank_tokens(job), token_shards(job)
    h, e = model.hidden_size, element_bytes(job)
    # What a product keeps as its operand alone is kept in fp8 where products are.
    operand = 1 if job.number_format is NumberFormat.fp8 else e
    if recompute is Recompute.full:
        return tokens * e * h / shards
    q = model.num_heads * model.head_size / split.tensor
    results = model.num_heads * model.value_size / split.tensor
    keys, values = (model.num_kv_heads * size / split.tensor for size in (model.head_size, model.value_size))
    gates = model.ffn_matrices - 1
    experts = None if is_dense else model.experts
    copied = 0.0
    if experts is None:
        ffn = model.ffn_size / split.tensor
    else:
        ffn = (experts.experts_per_token + experts.num_shared_experts) * experts.expert_ffn_size / split.tensor
        # Each routed copy of a token before its expert, and what came back, to be weighted.
        copied = experts.experts_per_token * h / shards * (operand + e)
    log_sums = _FP32_BYTES * model.num_heads / split.tensor
    scores = 0.0
    if not kernel.is_fused and recompute is not Recompute.attention:
        # Softmax's result, dropout's result and its mask (arXiv:2205.05198, section 4.1.1).
        scores = (2 * e + 1) * job.batch.sequence_length * model.num_heads / split.tensor
    if recompute is Recompute.selective:
        share = 1 - software.selective_gemm_share
        products = q + keys + values + 2 * h / shards + gates * ffn
        return tokens * (e * (h / shards + results + share * products) + log_sums + copied)
    # Inputs and results of two norms; queries, keys and values, before and after rotation; attention's result; the
    # inputs of the activation function, and what its operators keep.
    outer = (2 * e + 2 * operand) * h / shards
    attention = e * (software.kept_rotations * (q + keys) + values) + log_sums
    attention += max(operand, e if kernel.is_fused else 0) * results
    feed_forward = e * gates * ffn + e * (software.kept_activations - 1) * ffn + operand * ffn
    return tokens * (outer + attention + scores + feed_forward + copied)


def _block_bytes(job: Job, software: Software, kernel: AttentionKernel, *, is_dense: bool) -> float:
    """Return the most that one block's backward needs: what a second forward keeps again, and live gradients."""
    split = job.split
    again = kept_bytes(job, software, kernel, Recompute.none, is_dense=is_dense)
    again -= kept_bytes(job, software, kernel, split.recompute, is_dense=is_dense)
    experts = None if is_dense else job.model.experts
    ffn = job.model.ffn_size
    if experts is not None:
        ffn = (experts.experts_per_token + experts.num_shared_experts) * experts.expert_ffn_size
    live = (
        rank_tokens(job) * element_bytes(job) * (2 * ffn / split.tensor + 2 * job.model.hidden_size / token_shards(job))
    )
    return max(0.0, again) + live


def _gathered_bytes(job: Job, software: Software, chunks: tuple[Chunk, ...]) -> float:
    """Return weights that ZeRO-3 has gathered: two blocks' and the tables', or all; and one block's whole gradient."""
    if job.split.zero_stage < 3 or job.split.shards == 1:
        return 0.0
    if job.split.gathers_per_step:
        return software.gather_bytes * sum(chunk_parameters(job, chunks))
    is_dense = not any(chunk.expert_blocks for chunk in chunks)
    block = sum(block_parameters(job, is_dense=is_dense))
    tables = table_parameters(job) * max(chunk.has_embedding + chunk.has_head for chunk in chunks)
    return software.gather_bytes * (2 * block + tables) + software.reduce_bytes * block


def _second_copy_bytes(job: Job, software: Software, dense: float) -> float:
    """Return the shard of a second copy of the weights, which backward gathers from (hpZ, arXiv:2306.10209, 3.2)."""
    split = job.split
    if split.zero_stage < 3 or split.zero3_group is None or split.zero3_group >= split.shards:
        return 0.0
    return software.gather_bytes * dense / split.zero3_group


def _buffers_bytes(job: Job) -> float:
    """Return hidden states on their way: gathered for a tensor-parallel product, and between pipeline stages."""
    split = job.split
    whole = hidden_bytes(job)
    gathered = 2 * whole if split.tensor > 1 and split.tensor_shards_sequence else 0.0
    exchanged = 0.0
    if job.model.experts is not None and split.expert > 1:
        exchanged = 2 * whole * job.model.experts.experts_per_token / token_shards(job)
    return gathered + exchanged + (4 * whole / token_shards(job) if split.pipeline > 1 else 0.0)


def _update_bytes(job: Job, software: Software, whole: float, owned: float) -> float:
    if job.split.zero_stage == 0:
        return software.update_whole_bytes[0] * whole
    return software.update_whole_bytes[1] * whole + software.update_owned_bytes * owned
