"""The loss as a sum over tokens, never a mean of means: the caller divides once, by the global token count."""

import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100
"""A target that is not learned or scored; the value torch's cross_entropy ignores by default."""


def token_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Return -log p(target) of each valid target, in nats, 0 elsewhere; float32 [B, T]."""
    losses_N = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return losses_N.view(labels_BT.shape)


def summed_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the sum over valid targets of -log p(target), in nats, as a float32 scalar."""
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
