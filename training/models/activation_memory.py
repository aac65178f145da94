"""What the layers and the loss keep of one micro-batch, in closed form. No torch: the planner and the launcher read it.

Counted are the tensors that autograd really saves in models/{layers,attention,experts,router}.py, each storage once,
with fused attention (on a GPU in bf16; an fp32 model with grouped queries would fall back to a [T, T] matrix there) and
a balanced router. The method is that of arXiv:2205.05198, section 4, for this block; tests/unit/models/test_memory.py
compares with a running one.
"""

from dataclasses import dataclass

from training.config.schema import ModelConfig, Precision, Recompute
from training.models.expert_memory import ExpertMemory
from training.models.sizes import dealt_kv_heads, head_sizes
from training.models.zero_memory import FP32_BYTES, element_bytes

PRODUCT_ROWS = 16_384
"""Rows of the output projection whose gradient is made at a time in bf16, before it is added up in fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationMemory:
    """Bytes that one micro-batch takes on one rank, layer by layer."""

    model: ModelConfig
    precision: Precision
    """Dtype of activations."""
    device: str
    """cpu, whose norms are not fused, or the name of any accelerator."""
    num_tokens: int
    """Tokens of the micro-batch on the rank: its part of each sequence."""
    logits_at_once_tokens: int | None = None
    """Tokens whose logits may exist at a time; None is all of them."""
    sequence: int = 1
    """Ranks that share each sequence."""
    expert: int = 1
    """Ranks that experts are spread over."""

    def block_bytes(self, recompute: Recompute, *, has_experts: bool = False) -> int:
        """Return what a block keeps from its forward to its backward, its input among it.

        none keeps what every operator saves; full the block's input alone; selective the input and the results of
        matrix products and attention (models/recompute.py), of routed experts nothing.
        """
        if recompute is Recompute.full:
            return self.hidden_bytes
        e, D = element_bytes(self.precision), self.model.hidden_size
        is_selective = recompute is Recompute.selective
        attention = self._attention_products_bytes() if is_selective else self._attention_bytes()
        if has_experts:
            feed_forward = self._experts.products_bytes if is_selective else self._experts.kept_bytes
        else:
            # gate and up; down's result; or gate, silu(gate), up and their product.
            feed_forward = (
                self.num_tokens * e * (2 * self.model.ffn_size + D if is_selective else 4 * self.model.ffn_size)
            )
        if is_selective:
            return self.hidden_bytes + attention + feed_forward
        masks = 2 * D if self.model.dropout > 0 else 0
        # A router casts hidden states that are not fp32; where no shared expert takes them, only the copy stays.
        is_cast = has_experts and self.precision is not Precision.fp32 and not self._experts.experts.num_shared_experts
        norms = self.norm_bytes + self._norm_bytes(D, keeps_result=not is_cast)
        return norms + attention + feed_forward + self.num_tokens * masks

    @property
    def hidden_bytes(self) -> int:
        """Hidden states between two layers."""
        return self.num_tokens * element_bytes(self.precision) * self.model.hidden_size

    @property
    def norm_bytes(self) -> int:
        """What an RMSNorm keeps: its input, its result (for the product that follows) and 1/rms of each token."""
        return self._norm_bytes(self.model.hidden_size, keeps_result=True)

    def block_backward_bytes(self, recompute: Recompute, *, has_experts: bool = False) -> int:
        """Return the most that the backward of one block needs beyond what was kept for it.

        That is what a second forward saves again, and the gradients that are alive at once: two of the feed-forward's
        width more than it has freed by then, two of hidden states. Gradients of weights are not counted.
        """
        e, D = element_bytes(self.precision), self.model.hidden_size
        again = self.block_bytes(Recompute.none, has_experts=has_experts)
        again -= self.block_bytes(recompute, has_experts=has_experts)
        if recompute is Recompute.selective and not has_experts:
            again += self.num_tokens * e * D  # down's result is kept too, and of no use in backward
        live = self._experts.backward_bytes if has_experts else self.num_tokens * e * 2 * self.model.ffn_size
        return again + live + 2 * self.hidden_bytes

    @property
    def loss_bytes(self) -> int:
        """The most that logits and loss need; see `loss_bytes`."""
        return loss_bytes(
            num_tokens=self.num_tokens,
            vocab_size=self.model.vocab_size,
            hidden_size=self.model.hidden_size,
            element_bytes=element_bytes(self.precision),
            at_once_tokens=self.logits_at_once_tokens,
        )

    @property
    def _experts(self) -> ExpertMemory:
        experts = self.model.experts
        assert experts is not None
        return ExpertMemory(
            experts=experts,
            hidden_size=self.model.hidden_size,
            precision=self.precision,
            num_tokens=self.num_tokens,
            expert=self.expert,
        )

    def _norm_bytes(self, width: int, *, keeps_result: bool, count: int = 1) -> int:
        """Return what norms of so many vectors of each token keep: input, result where a product follows, 1/rms.

        Only a GPU has a fused kernel; on CPU torch keeps the input in fp32, and it normalised but not yet weighted.
        """
        e = element_bytes(self.precision)
        per_channel = (2 * FP32_BYTES if self.device == "cpu" else e) + e * keeps_result
        return self.num_tokens * count * (per_channel * width + FP32_BYTES)

    def _attention_bytes(self) -> int:
        """Return what attention keeps beside its norm: queries, keys and values as its kernel takes them, its result.

        Values that are narrower than keys are padded. The result is there a second time for the projection after an
        exchange of heads for tokens, and in latent attention, whose queries, and so results, lie head by head.
        """
        model, e, N = self.model, element_bytes(self.precision), self.model.num_heads
        key_size, value_size = head_sizes(model)
        kv_heads = dealt_kv_heads(model, self.sequence)
        padded = max(key_size, value_size)
        values, latent, norms = kv_heads * padded, model.latent_attention, 0
        is_copied = latent is not None or self.sequence > 1
        if latent is not None:
            norms = self._norm_bytes(latent.kv_rank, keeps_result=True)
            if latent.query_rank is not None:
                norms += self._norm_bytes(latent.query_rank, keeps_result=True)
            # Norms of the narrow vectors take views of what holds the rotated part of the keys too.
            if self.device != "cpu" or self.precision is Precision.fp32:
                norms += self.num_tokens * e * latent.rope_head_size
            if padded == value_size and self.sequence == 1:
                values += N * latent.head_size  # a view of the product that made values and keys
        elif model.qk_norm:
            count = N + model.num_kv_heads
            norms = self._norm_bytes(model.attention_head_size, keeps_result=False, count=count)
        result = N * padded + (N * value_size if is_copied else 0)
        log_sums = FP32_BYTES * N  # of attention's softmax
        return norms + self.num_tokens * (e * (N * key_size + kv_heads * key_size + values + result) + log_sums)

    def _attention_products_bytes(self) -> int:
        """Return the results of attention's matrix products and of its kernel."""
        model, e, N = self.model, element_bytes(self.precision), self.model.num_heads
        key_size, value_size = head_sizes(model)
        latent = model.latent_attention
        if latent is None:
            made = (N + 2 * model.num_kv_heads) * key_size
        else:
            made = (latent.query_rank or 0) + N * key_size + latent.kv_rank + latent.rope_head_size
            made += N * (latent.head_size + value_size)
        result = N * max(key_size, value_size)
        return self.num_tokens * (e * (made + result + model.hidden_size) + FP32_BYTES * N)


def loss_bytes(
    *, num_tokens: int, vocab_size: int, hidden_size: int, element_bytes: int, at_once_tokens: int | None
) -> int:
    """Return the most that logits and loss of a micro-batch need on one rank.

    Whole, at the start of backward, these are the logits, where the caller still holds them, and in fp32 their
    log-softmax, its gradient and the logits' gradient (models/loss.py). Chunk by chunk (models/linear_cross_entropy.py)
    they are a chunk's logits and, in fp32, its softmax, beside the gradients of the hidden states and, in fp32, of the
    projection's weight; at the end both gradients once more, scaled.

    Args:
        num_tokens: of the micro-batch on this rank.
        vocab_size: this rank's rows of the projection.
        hidden_size: its columns.
        element_bytes: of weights and activations.
        at_once_tokens: tokens whose logits may exist at a time; None is all of them.
    """
    if at_once_tokens is None or num_tokens <= at_once_tokens:
        return num_tokens * vocab_size * (element_bytes + 3 * FP32_BYTES)
    chunk_tokens = -(-num_tokens // -(-num_tokens // at_once_tokens))
    rounded = element_bytes if element_bytes != FP32_BYTES else 0  # a copy beside what is in fp32
    logits = chunk_tokens * vocab_size * (FP32_BYTES + rounded)
    product = chunk_tokens * vocab_size * element_bytes + min(vocab_size, PRODUCT_ROWS) * hidden_size * rounded
    gradients = num_tokens * hidden_size * element_bytes + vocab_size * hidden_size * FP32_BYTES
    scaled = (num_tokens + vocab_size) * hidden_size * element_bytes
    return gradients + max(logits, product, scaled)
