"""Which experts each token passes, and with what weight; the losses that keep a router in balance.

Shapes: N tokens, E experts of the block, K of them per token, B sequences.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config.model_schema import BalanceScope, ExpertsConfig, RouterScore
from training.models.axes import Axis, sum_constant

_SMALLEST_SUM = 1e-20
"""Added to a token's summed scores before dividing by them, as DeepSeek-V3's code does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """The choice for N tokens."""

    experts_NK: Tensor
    """int64; experts of each token, the highest score first."""
    weights_NK: Tensor
    """float32; factor of each one's output."""
    logits_NE: Tensor
    """float32; what the scores were made from."""
    scores_NE: Tensor
    """float32."""


class Router(nn.Module):
    """Scores the experts of a block for each token, in float32 whatever the model runs in.

    The bias of balancing without a loss is no parameter: nothing of it is learned, and no cast or shard may touch it.
    """

    def __init__(self, hidden_size: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        self.bias_E: Tensor | None = None
        """float32, or None without that kind of balancing; the engine moves it (training/engine/routing.py)."""
        if config.bias_update_rate > 0:
            self.bias_E = torch.zeros(config.num_experts, device="cpu")

    def forward(self, hidden_ND: Tensor) -> Routing:
        """Return the choice for each token (arXiv:2412.19437, equations 12 to 16; Mixtral, arXiv:2401.04088)."""
        config = self.config
        logits_NE = F.linear(hidden_ND.float(), self.weight.float())
        scores_NE = logits_NE.softmax(-1) if config.score is RouterScore.softmax else logits_NE.sigmoid()
        ranked_NE = scores_NE.detach() if self.bias_E is None else scores_NE.detach() + self.bias_E
        if config.num_groups > 1:
            ranked_NE = _within_best_groups(ranked_NE, config)
        experts_NK = ranked_NE.topk(config.experts_per_token, dim=-1).indices
        weights_NK = scores_NE.gather(-1, experts_NK)
        if config.normalize_weights:
            weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + _SMALLEST_SUM)
        return Routing(
            experts_NK=experts_NK,
            weights_NK=weights_NK * config.weight_scale,
            logits_NE=logits_NE,
            scores_NE=scores_NE,
        )


def _within_best_groups(ranked_NE: Tensor, config: ExpertsConfig) -> Tensor:
    by_group_NGX = ranked_NE.unflatten(-1, (config.num_groups, -1))
    best = min(2, by_group_NGX.shape[-1])
    group_scores_NG = by_group_NGX.topk(best, dim=-1).values.sum(-1)
    groups = group_scores_NG.topk(config.groups_per_token, dim=-1).indices
    is_left_out_NG = torch.ones_like(group_scores_NG, dtype=torch.bool).scatter_(-1, groups, False)
    return by_group_NGX.masked_fill(is_left_out_NG[..., None], -torch.inf).flatten(-2)


def balance_loss(routing: Routing, config: ExpertsConfig, *, num_sequences: int, sequence: Axis) -> Tensor:
    """Return the load-balancing loss of this rank's tokens, summed over them: as many times the loss as tokens.

    For each group of tokens E·Σ f_e·P_e, where f_e is the share of its choices that fell on expert e and P_e the mean
    of its normalised scores (arXiv:2101.03961, equation 4; of one sequence arXiv:2412.19437, equations 17 to 20). It is
    1 where both are even, whatever E and K.

    Args:
        routing: of B sequences, one after the other.
        config: the experts.
        num_sequences: B.
        sequence: ranks that hold the other tokens of the same sequences.
    """
    scores_NE = routing.scores_NE / routing.scores_NE.sum(-1, keepdim=True)
    num_groups = num_sequences if config.balance_scope is BalanceScope.sequence else 1
    num_tokens = len(scores_NE)
    chosen_BX = routing.experts_NK.view(num_groups, -1)
    counts_BE = torch.zeros((num_groups, config.num_experts), device=scores_NE.device)
    counts_BE.scatter_add_(1, chosen_BX, torch.ones_like(chosen_BX, dtype=counts_BE.dtype))
    counts_BE = sum_constant(counts_BE, sequence)
    summed_BE = sum_constant(scores_NE.view(num_groups, -1, config.num_experts).sum(1), sequence)
    tokens_of_group = num_tokens * sequence.size / num_groups
    share_BE = counts_BE / (tokens_of_group * config.experts_per_token)
    of_group_B = config.num_experts * (share_BE * summed_BE / tokens_of_group).sum(-1)
    return of_group_B.sum() * tokens_of_group


def z_loss(routing: Routing) -> Tensor:
    """Return the router z-loss summed over tokens: the squared log-sum-exp of the logits (arXiv:2202.08906, eq. 5)."""
    return routing.logits_NE.logsumexp(-1).square().sum()


def entropy(routing: Routing) -> Tensor:
    """Return the entropy of each token's normalised scores, summed over tokens, in nats."""
    scores_NE = routing.scores_NE.detach()
    return torch.special.entr(scores_NE / scores_NE.sum(-1, keepdim=True)).sum()
