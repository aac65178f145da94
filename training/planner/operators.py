"""What one rank computes of one micro-batch: matrix products, attention and bytes moved. No torch.

Operators are listed for forward. Backward follows: a matrix product is two of the same FLOPs (gradients of its input
and of its weight), attention and memory-bound work say their own.
"""

from dataclasses import dataclass

from training.planner.job import Job, NumberFormat, Recompute
from training.planner.software import OURS, Software


@dataclass(frozen=True, slots=True)
class Gemm:
    """Matrix products [m, k] x [k, n], `count` of that shape."""

    m: float
    n: float
    k: float
    count: float = 1
    number_format: NumberFormat = NumberFormat.bf16

    @property
    def flops(self) -> float:
        """FLOPs of all of them, a multiply-add being two."""
        return 2 * self.m * self.n * self.k * self.count

    def backward(self) -> tuple["Gemm", "Gemm"]:
        """Return the products that give the gradients of the input and of the weight."""
        to_input = Gemm(self.m, self.k, self.n, self.count, self.number_format)
        to_weight = Gemm(self.k, self.n, self.m, self.count, self.number_format)
        return to_input, to_weight


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention of `queries` positions to `keys` positions each, before the masked half is left out."""

    queries: float
    keys: float
    heads: float
    head_size: float
    """Of queries and keys on one side, values on the other: their mean."""
    number_format: NumberFormat = NumberFormat.bf16

    @property
    def full_flops(self) -> float:
        """FLOPs of the two matrix products of forward if no position were masked."""
        return 4 * self.queries * self.keys * self.heads * self.head_size


@dataclass(frozen=True, slots=True)
class Work:
    """Operators of one part of the model on one rank, for one micro-batch."""

    gemms: tuple[Gemm, ...] = ()
    attention: Attention | None = None
    forward_bytes: float = 0.0
    """Memory traffic of all that is neither a matrix product nor attention."""
    backward_bytes: float = 0.0
    """The same in backward."""
    exchanged_bytes: float = 0.0
    """Tokens sent to their experts, forward, one way, a copy to each expert."""


def plain_format(job: Job) -> NumberFormat:
    """Return the format of what fp8 programs leave in bf16: hidden states, attention, router, output projection."""
    return NumberFormat.fp32 if job.number_format is NumberFormat.fp32 else NumberFormat.bf16


def element_bytes(job: Job) -> int:
    """Return bytes of one element of the hidden states."""
    return 4 if job.number_format is NumberFormat.fp32 else 2


def rank_tokens(job: Job) -> float:
    """Return the tokens of one micro-batch on one rank: its context share; tensor-parallel ranks share the same."""
    return job.batch.micro_batch * job.batch.sequence_length / job.split.context


def token_shards(job: Job) -> int:
    """Return among how many tensor-parallel ranks the tokens between tensor-parallel regions are divided."""
    return job.split.tensor if job.split.tensor_shards_sequence else 1


def hidden_bytes(job: Job) -> float:
    """Return the bytes of one rank's hidden states between two blocks, those of all its tensor-parallel ranks."""
    return rank_tokens(job) * job.model.hidden_size * element_bytes(job)


def block_work(job: Job, software: Software, *, is_dense: bool) -> Work:
    """Return the operators of one block.

    Args:
        job: the run.
        software: what it runs in.
        is_dense: whether the feed-forward layer is an ordinary one; in a model without experts all are.
    """
    model, tensor, tokens = job.model, job.split.tensor, rank_tokens(job)
    h, number_format = model.hidden_size, job.number_format
    q_size, kv_size = (heads * model.head_size / tensor for heads in (model.num_heads, model.num_kv_heads))
    # Our kernels take one size, to which narrower values are padded (training/models/attend.py).
    value_size = max(model.head_size, model.value_size) if job.software in OURS else model.value_size
    attention = Attention(
        tokens,
        job.batch.sequence_length,
        model.num_heads / tensor,
        (model.head_size + value_size) / 2,
        plain_format(job),
    )
    gemms = _attention_gemms(job, tokens)
    # In elements of each token. Two norms read and write in forward, two residual additions read two and write one; in
    # backward a norm reads two and writes one, an addition adds up the stream's gradient. Rotary embedding reads and
    # writes queries and keys, both ways.
    shards = token_shards(job)
    forward = 2 * (2 + 3) * h / shards + 2 * (q_size + kv_size)
    backward = 2 * (3 + 3) * h / shards + 2 * (q_size + kv_size)
    gates = model.ffn_matrices - 1
    routing_bytes = exchanged_bytes = 0.0
    experts = None if is_dense else model.experts
    if experts is None:
        activated = model.ffn_size / tensor
        gemms += [Gemm(tokens, gates * activated, h, 1, number_format), Gemm(tokens, h, activated, 1, number_format)]
    else:
        ffn, top_k = experts.expert_ffn_size / tensor, experts.experts_per_token
        local = experts.num_experts / job.split.expert
        # Balanced routing: each expert gets the same share of the tokens of all ranks that it serves.
        per_expert = tokens * top_k * job.split.expert / experts.num_experts
        gemms += [
            Gemm(tokens / shards, experts.num_experts, h, 1, plain_format(job)),
            Gemm(per_expert, gates * ffn, h, local, number_format),
            Gemm(per_expert, h, ffn, local, number_format),
        ]
        shared = experts.num_shared_experts * ffn
        if shared:
            gemms += [Gemm(tokens, gates * shared, h, 1, number_format), Gemm(tokens, h, shared, 1, number_format)]
        activated = top_k * ffn + shared
        # Permuting, at both ends of the exchange and both ways of it, reads and writes every copy.
        forward += 4 * 2 * top_k * h / shards
        backward += 4 * 2 * top_k * h / shards
        # Scores, softmax, top-k, their map and its permutation, in fp32.
        routing_bytes = 6 * 4 * tokens * experts.num_experts / shards
        exchanged_bytes = tokens * top_k * h * element_bytes(job) / shards
    # The activation function reads its inputs and writes one; in backward it reads them and the gradient, and writes
    # theirs.
    forward += (gates + 1) * activated
    backward += (2 * gates + 1) * activated
    per_element = element_bytes(job) * software.traffic_factor * tokens
    forward_bytes, backward_bytes = forward * per_element + routing_bytes, backward * per_element + routing_bytes
    if number_format is NumberFormat.fp8:
        # An operand is read in bf16 and written in fp8 twice, as it is and transposed; its scale is that of the step
        # before. Weights are cast once a step. TransformerEngine, common/transpose/cast_transpose.cu.
        cast_bytes = 2 + 2
        in_fp8 = [gemm for gemm in gemms if gemm.number_format is NumberFormat.fp8]
        forward_bytes += cast_bytes * sum(gemm.m * gemm.k * gemm.count for gemm in in_fp8)
        backward_bytes += cast_bytes * sum(gemm.m * gemm.n * gemm.count for gemm in in_fp8)
    return Work(tuple(gemms), attention, forward_bytes, backward_bytes, exchanged_bytes)


def _attention_gemms(job: Job, tokens: float) -> list[Gemm]:
    """Return the matrix products of an attention layer; of a latent one, those of the narrow vectors are not cut."""
    model, tensor, h, of = job.model, job.split.tensor, job.model.hidden_size, job.number_format
    results = model.num_heads * model.value_size / tensor
    latent = model.config.latent_attention if model.config is not None else None
    if latent is None:
        made = (model.num_heads * model.head_size + model.num_kv_heads * (model.head_size + model.value_size)) / tensor
        return [Gemm(tokens, made, h, 1, of), Gemm(tokens, h, results, 1, of)]
    queries, rank = model.num_heads * model.head_size / tensor, latent.query_rank
    keys_and_values = model.num_heads * (latent.head_size + latent.value_head_size) / tensor
    direct = [Gemm(tokens, queries, h, 1, of)]
    return [
        *(direct if rank is None else [Gemm(tokens, rank, h, 1, of), Gemm(tokens, queries, rank, 1, of)]),
        Gemm(tokens, latent.kv_rank + latent.rope_head_size, h, 1, of),
        Gemm(tokens, keys_and_values, latent.kv_rank, 1, of),
        Gemm(tokens, h, results, 1, of),
    ]


def context_exchanges(job: Job) -> tuple[float, float, float, float]:
    """Return the elements of one rank's queries, keys, values and results that attention exchanges for its tokens.

    Where heads are dealt to more ranks than there are key/value heads, these are repeated.
    """
    model, split = job.model, job.split
    num_heads, num_kv_heads = model.num_heads / split.tensor, model.num_kv_heads / split.tensor
    if split.context_exchange == "heads" and num_kv_heads % split.context:
        num_kv_heads = split.context if split.context % num_kv_heads == 0 else num_heads
    each = (
        num_heads * model.head_size,
        num_kv_heads * model.head_size,
        num_kv_heads * model.value_size,
        num_heads * model.value_size,
    )
    queries, keys, values, results = (rank_tokens(job) * width for width in each)
    return queries, keys, values, results


def repeats_exchanges(job: Job) -> bool:
    """Return whether backward sends again what forward has: with full recompute, and in ours with any.

    Ours runs the whole forward of a block a second time, and takes from it what it did not keep.
    """
    recompute = job.split.recompute
    return recompute is Recompute.full or (job.software in OURS and recompute is Recompute.selective)


def embedding_work(job: Job) -> Work:
    """Return the embedding: a look-up; in backward a whole gradient, zeroed, to which the rows' are added.

    A tied one's is added to the output projection's where both are on one rank.
    """
    hidden, table = hidden_bytes(job), element_bytes(job) * table_parameters(job)
    is_shared = job.model.tied_embeddings and job.split.pipeline == 1
    return Work(forward_bytes=2 * hidden, backward_bytes=3 * hidden + (4 if is_shared else 1) * table)


def head_work(job: Job, software: Software) -> Work:
    """Return the final norm, the output projection (in bf16 in fp8 programs too) and the loss."""
    tokens, vocabulary = rank_tokens(job), job.model.vocab_size / job.split.tensor
    loss_bytes = software.loss_bytes_per_logit * tokens * vocabulary
    return Work(
        gemms=(Gemm(tokens, vocabulary, job.model.hidden_size, 1, plain_format(job)),),
        forward_bytes=2 * hidden_bytes(job) / token_shards(job) + loss_bytes / 2,
        backward_bytes=3 * hidden_bytes(job) / token_shards(job) + loss_bytes / 2,
    )


def block_parameters(job: Job, *, is_dense: bool) -> tuple[float, float]:
    """Return parameters of one block on one rank: those that all replicas have, and those of its experts."""
    model, tensor = job.model, job.split.tensor
    attention = model.attention_parameters / tensor
    outer = attention + 2 * model.hidden_size
    experts = None if is_dense else model.experts
    if experts is None:
        return outer + model.ffn_matrices * model.hidden_size * model.ffn_size / tensor, 0.0
    one = model.ffn_matrices * model.hidden_size * experts.expert_ffn_size / tensor
    router = model.hidden_size * experts.num_experts
    return outer + router + experts.num_shared_experts * one, one * experts.num_experts / job.split.expert


def table_parameters(job: Job) -> float:
    """Return parameters of the embedding, or of the output projection, on one rank."""
    return job.model.vocab_size * job.model.hidden_size / job.split.tensor
