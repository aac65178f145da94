"""Loss and scores as sums over tokens, never as means of means: the caller divides once, by the global token count."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100
"""A target that is not learned or scored; the value torch's cross_entropy ignores by default."""


def summed_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the sum over valid targets of -log p(target), in nats, as a float32 scalar."""
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )


@torch.no_grad()
def score_sequences(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return per sequence: log p summed over valid targets, their number, and the most likely next token.

    Returns:
        float64 [B] in nats; int64 [B]; int64 [B], the argmax after the last valid target's position.
    """
    valid_BT = labels_BT != IGNORED_LABEL
    targets_BT = labels_BT.masked_fill(~valid_BT, 0)
    logprobs_BTV = logits_BTV.float().log_softmax(-1)
    chosen_BT = logprobs_BTV.gather(-1, targets_BT[..., None])[..., 0].double()
    num_tokens_B = valid_BT.sum(-1)
    positions_T = torch.arange(labels_BT.shape[1], device=labels_BT.device)
    last_B = (positions_T * valid_BT).argmax(-1)
    next_token_B = logits_BTV[torch.arange(len(last_B), device=last_B.device), last_B].argmax(-1)
    return (chosen_BT * valid_BT).sum(-1), num_tokens_B, next_token_B
