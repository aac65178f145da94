"""Direct preference optimisation (arXiv:2305.18290): the loss of pairs of answers, from the loss of each token.

Answers stand in the samples as documents: 2n is the chosen, 2n+1 the rejected answer of the n-th pair of a sequence.
Shape suffixes: B sequences, T tokens, A answers of a sequence, P = A/2 pairs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config.stage_schema import PREFERENCE_MEASURES, PreferenceConfig
from training.models.axes import Axis, sum_constant
from training.models.loss import IGNORED_LABEL


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The pairs of a micro-batch."""

    answers_BT: Tensor
    """Integers, on any device; number of each token's answer within its sequence, of this rank's tokens."""
    references_BA: Tensor
    """float64, on any device; log-probability of each answer under the reference model, NaN where there is none."""
    config: PreferenceConfig
    sequence: Axis
    """Ranks that hold the other tokens of the same sequences."""


def preference_losses(token_losses_BT: Tensor, labels_BT: Tensor, pairs: Pairs) -> Tensor:
    """Return float32 [5]: the loss summed over pairs (equation 7), and PREFERENCE_MEASURES without a gradient.

    The reward of an answer is beta·(log p - log p of the reference), its margin that of chosen over rejected. Of ranks
    that share sequences each makes its own tokens' gradient of the whole, and the first alone gives the numbers.

    Args:
        token_losses_BT: float32; -log p of each valid target, 0 elsewhere.
        labels_BT: targets.
        pairs: what they belong to.
    """
    config, device = pairs.config, token_losses_BT.device
    references_BA = pairs.references_BA.to(device)
    num_sequences, num_answers = references_BA.shape
    answers_BT = pairs.answers_BT.to(device).clamp(max=num_answers)  # the room that is left has a number too

    def summed(values_BT: Tensor) -> Tensor:
        sums_BA = values_BT.new_zeros((num_sequences, num_answers + 1), dtype=torch.float64)
        sums_BA = sums_BA.scatter_add(1, answers_BT, values_BT.double())[:, :-1]
        return sum_constant(sums_BA, pairs.sequence)

    logprobs_BA = -summed(token_losses_BT)
    rewards_BA = config.beta * (logprobs_BA - references_BA.nan_to_num())
    chosen_BP, rejected_BP = rewards_BA[:, ::2], rewards_BA[:, 1::2]
    margin_BP = chosen_BP - rejected_BP
    smoothing = config.label_smoothing
    losses_BP = -(1 - smoothing) * F.logsigmoid(margin_BP) - smoothing * F.logsigmoid(-margin_BP)
    if config.sft_weight > 0:
        num_targets_BP = summed((labels_BT.to(device) != IGNORED_LABEL).float())[:, ::2].clamp(min=1)
        losses_BP = losses_BP - config.sft_weight * logprobs_BA[:, ::2] / num_targets_BP
    is_pair_BP = ~references_BA[:, ::2].isnan()

    def over_pairs(values_BP: Tensor) -> Tensor:
        return torch.where(is_pair_BP, values_BP, 0.0).sum()

    measured = ((margin_BP > 0).double(), margin_BP, chosen_BP, rejected_BP)
    assert len(measured) == len(PREFERENCE_MEASURES)
    sums = torch.stack([over_pairs(losses_BP), *(over_pairs(values.detach()) for values in measured)])
    return (sums if pairs.sequence.place == 0 else sums - sums.detach()).float()
