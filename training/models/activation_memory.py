"""What the layers and the loss keep of one micro-batch, in closed form. No torch: the planner and the launcher read it.

Counted are the tensors that autograd really saves in models/layers.py, each storage once, with fused attention (on a
GPU in bf16; an fp32 model with grouped queries would fall back to a [T, T] matrix there). The method is that of
arXiv:2205.05198, section 4, for this block; tests/unit/models/test_memory.py compares with a running one.
"""

from dataclasses import dataclass

from training.config.schema import ModelConfig, Precision, Recompute
from training.models.zero_memory import FP32_BYTES, element_bytes

PRODUCT_ROWS = 16_384
"""Rows of the output projection whose gradient is made at a time in bf16, before it is added up in fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationMemory:
    """Bytes that one micro-batch takes, layer by layer."""

    model: ModelConfig
    precision: Precision
    """Dtype of activations."""
    device: str
    """cpu, whose norms are not fused, or the name of any accelerator."""
    num_tokens: int
    """Tokens of the micro-batch."""
    logits_at_once_tokens: int | None = None
    """Tokens whose logits may exist at a time; None is all of them."""

    def block_bytes(self, recompute: Recompute) -> int:
        """Return what a block keeps from its forward to its backward, its input among it.

        none keeps what every operator saves; full the block's input alone; selective the input and the results of
        matrix products and attention (models/recompute.py).
        """
        e, D, F, N = element_bytes(self.precision), self.model.hidden_size, self.model.ffn_size, self.model.num_heads
        kv_size = self.model.num_kv_heads * (D // N)
        log_sums = FP32_BYTES * N  # of attention's softmax
        if recompute is Recompute.full:
            return self.hidden_bytes
        if recompute is Recompute.selective:
            # Input; q, k, v; attention's result and its projection; gate and up; down.
            return self.num_tokens * (e * (5 * D + 2 * kv_size + 2 * F) + log_sums)
        attention = e * (2 * D + 2 * kv_size) + log_sums
        feed_forward = e * 4 * F  # gate, silu(gate), up and their product
        masks = 2 * D if self.model.dropout > 0 else 0
        return 2 * self.norm_bytes + self.num_tokens * (attention + feed_forward + masks)

    @property
    def hidden_bytes(self) -> int:
        """Hidden states between two layers."""
        return self.num_tokens * element_bytes(self.precision) * self.model.hidden_size

    @property
    def norm_bytes(self) -> int:
        """What an RMSNorm keeps: its input, its result (for the product that follows) and 1/rms of each token.

        Only a GPU has a fused kernel; on CPU torch keeps the input in fp32, and it normalised but not yet weighted.
        """
        e = element_bytes(self.precision)
        per_channel = e + 2 * FP32_BYTES if self.device == "cpu" else 2 * e
        return self.num_tokens * (per_channel * self.model.hidden_size + FP32_BYTES)

    def block_backward_bytes(self, recompute: Recompute) -> int:
        """Return the most that the backward of one block needs beyond what was kept for it.

        That is what a second forward saves again, and the gradients that are alive at once: two of the feed-forward's
        width more than it has freed by then, two of hidden states. Gradients of weights are not counted.
        """
        e, F = element_bytes(self.precision), self.model.ffn_size
        again = self.block_bytes(Recompute.none) - self.block_bytes(recompute)
        if recompute is Recompute.selective:
            again += self.hidden_bytes  # down's result is kept too, and of no use in backward
        return again + self.num_tokens * e * 2 * F + 2 * self.hidden_bytes

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
