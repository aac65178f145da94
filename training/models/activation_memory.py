"""What the layers and the loss keep of one micro-batch, in closed form. No torch: the planner and the launcher read it.

Counted are the tensors that autograd really saves in models/layers.py, each storage once, with fused attention (on a
GPU in bf16; an fp32 model with grouped queries would fall back to a [T, T] matrix there). The method is that of
arXiv:2205.05198, section 4, for this block; tests/unit/models/test_memory.py compares with a running one.
"""

from dataclasses import dataclass

from training.config.schema import ModelConfig, Precision, Recompute
from training.models.zero_memory import FP32_BYTES, element_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationMemory:
    """Bytes that one micro-batch takes, layer by layer."""

    model: ModelConfig
    precision: Precision
    """Dtype of activations."""
    device: str
    """DeepSpeed accelerator name."""
    num_tokens: int
    """Tokens of the micro-batch."""

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
        """The most that logits and loss need, at the start of backward.

        These are the logits, where the caller still holds them, and in fp32 their log-softmax, its gradient and the
        logits' gradient (models/loss.py).
        """
        return self.num_tokens * self.model.vocab_size * (element_bytes(self.precision) + 3 * FP32_BYTES)
