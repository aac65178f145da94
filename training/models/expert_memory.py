"""What a feed-forward layer of routed experts keeps of one micro-batch, in closed form. No torch.

Counted are the tensors that autograd saves in models/{experts,router}.py, with a balanced router: as many rows come to
a rank's experts as its tokens send out. Counts of an expert's rows and the like, a few numbers each, are left out.
"""

from dataclasses import dataclass

from training.config.model_schema import ExpertsConfig
from training.config.schema import Precision
from training.models.zero_memory import FP32_BYTES, element_bytes

_INDEX_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertMemory:
    """Bytes of one block on one rank."""

    experts: ExpertsConfig
    hidden_size: int
    precision: Precision
    num_tokens: int
    """Tokens of the micro-batch on the rank."""
    expert: int
    """Ranks that experts are spread over."""

    @property
    def kept_bytes(self) -> int:
        """From forward to backward, beside the hidden states that the norm before has made."""
        experts, e, D = self.experts, element_bytes(self.precision), self.hidden_size
        num_rows = routed_rows(experts, self.num_tokens)
        # Each row before its expert, and four of the expert's width; its place, on both sides of an exchange.
        rows = num_rows * (e * (D + 4 * experts.expert_ffn_size) + _INDEX_BYTES * (3 if self.expert > 1 else 1))
        results = self.num_tokens * experts.experts_per_token * e * D  # to be weighted
        shared = self.num_tokens * e * 4 * experts.num_shared_experts * experts.expert_ffn_size
        return self._router_bytes + rows + results + shared

    @property
    def products_bytes(self) -> int:
        """The results of matrix products that selective recompute keeps: those of router and shared experts."""
        experts, e = self.experts, element_bytes(self.precision)
        shared = experts.num_shared_experts * experts.expert_ffn_size
        made = FP32_BYTES * experts.num_experts + e * (2 * shared + (self.hidden_size if shared else 0))
        return self.num_tokens * made

    @property
    def backward_bytes(self) -> int:
        """Gradients that are alive at once beyond what has been freed by then.

        Either those of the weighted results, and what gives the weights' own gradient, or those within the experts.
        """
        experts, e, D = self.experts, element_bytes(self.precision), self.hidden_size
        num_rows = routed_rows(experts, self.num_tokens)
        exchanged = num_rows * e * D
        shared = self.num_tokens * e * 2 * experts.num_shared_experts * experts.expert_ffn_size
        inner = num_rows * e * (2 * experts.expert_ffn_size - D)
        return max(2 * exchanged, inner, shared)

    @property
    def _router_bytes(self) -> int:
        """Hidden states and router weights in fp32, scores, choices and their weights, and what its losses keep."""
        experts, e = self.experts, element_bytes(self.precision)
        cast = FP32_BYTES if self.precision is Precision.bf16 else 0
        E, K = experts.num_experts, experts.experts_per_token
        scores = E * FP32_BYTES * (2 if experts.z_loss > 0 else 1)
        weights = K * (_INDEX_BYTES + e + (FP32_BYTES if experts.normalize_weights else 0))
        sums = FP32_BYTES * (experts.normalize_weights + (experts.z_loss > 0) + (experts.balance_loss > 0))
        return self.num_tokens * (cast * self.hidden_size + scores + weights + sums) + cast * E * self.hidden_size


def routed_rows(experts: ExpertsConfig, num_tokens: int) -> int:
    """Return the rows that a rank's tokens make for their experts if the router is balanced."""
    num_rows = num_tokens * experts.experts_per_token
    if experts.capacity_factor is None:
        return num_rows
    capacity = -(-int(experts.capacity_factor * num_rows) // experts.num_experts)  # experts.py, `_within_capacity`
    return min(num_rows, experts.num_experts * capacity)
