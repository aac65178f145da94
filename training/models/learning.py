"""What one forward is to learn from, besides its tokens: targets, and which tokens belong together.

Layers take one tensor and return one, so that a pipeline can cut anywhere between them. What a forward is for stands
around it, as `training/models/inference.py` does for passes in which nothing is learned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config.schema import AttentionImplementation
from training.models.documents import Documents
from training.models.linear_cross_entropy import linear_cross_entropy, linear_token_losses
from training.models.loss import summed_cross_entropy, token_cross_entropy
from training.models.preference import Pairs, preference_losses


@dataclass(frozen=True, kw_only=True, slots=True)
class LaterTokens:
    """What the K blocks of multi-token prediction learn from; on any device."""

    ids_KBT: Tensor
    """int64; of each depth, the tokens that it adds to what it knows."""
    labels_KBT: Tensor
    """int64; of each depth, its targets."""
    weight: float
    """Weight of each depth's loss beside the model's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningPass:
    """What one micro-batch's forward learns from."""

    labels_BT: Tensor
    """int64 targets of this rank's tokens, IGNORED_LABEL where there is none; on any device."""
    loss_chunk_tokens: int
    """Tokens whose logits may exist at a time."""
    documents: Documents | None = None
    """Which tokens of the whole sequences belong together; None where each sequence is one document."""
    attention: AttentionImplementation = AttentionImplementation.auto
    """What computes attention."""
    later: LaterTokens | None = None
    """Of multi-token prediction; None without it."""
    pairs: Pairs | None = None
    """Of preferences: which answers the tokens are of; None where the loss is that of tokens."""

    @property
    def labels(self) -> list[Tensor]:
        """Targets [B, T] of the model itself and of each depth after it."""
        return [self.labels_BT] if self.later is None else [self.labels_BT, *self.later.labels_KBT]

    def total(self, losses: Tensor) -> Tensor:
        """Return what the gradient is of: the first of `summed_losses`, and those of later tokens by their weight."""
        return losses[0] if self.later is None else losses[0] + self.later.weight * losses[1:].sum()


_current_pass: ContextVar[LearningPass | None] = ContextVar("learning_pass", default=None)


@contextmanager
def learning(this: LearningPass) -> Iterator[None]:
    """Let the forwards inside be that pass. Backward, also with recompute, may run outside."""
    token = _current_pass.set(this)
    try:
        yield
    finally:
        _current_pass.reset(token)


def current_learning() -> LearningPass | None:
    """Return the pass that is running; None outside of training."""
    return _current_pass.get()


def logits_or_losses(hidden_KBTD: Tensor, weight_VD: Tensor) -> Tensor:
    """Return logits [K·B, T, V]; of a pass that learns from more tokens than a chunk, the summed losses [K].

    Of preferences with more tokens than a chunk it is the loss of each token, [B, T].

    The loss is made here, within the output projection: only while that module runs has ZeRO-3 gathered its weight.

    Args:
        hidden_KBTD: [K·B, T, D], of the model itself and of each depth of multi-token prediction after it.
        weight_VD: the projection.
    """
    this = _current_pass.get()
    if this is None or hidden_KBTD.shape[:2].numel() <= this.loss_chunk_tokens:
        return F.linear(hidden_KBTD, weight_VD)
    if this.pairs is not None:
        labels_BT = this.labels_BT.to(hidden_KBTD.device)
        return linear_token_losses(hidden_KBTD, weight_VD, labels_BT, chunk_tokens=this.loss_chunk_tokens)
    losses = [
        linear_cross_entropy(
            hidden_BTD, weight_VD, labels_BT.to(hidden_BTD.device), chunk_tokens=this.loss_chunk_tokens
        )
        for hidden_BTD, labels_BT in zip(hidden_KBTD.chunk(len(this.labels)), this.labels, strict=True)
    ]
    return torch.stack(losses)


def summed_losses(logits_or_losses: Tensor, this: LearningPass) -> Tensor:
    """Return each loss summed over its valid targets, in nats, float32 [K]: the model's own first.

    Of preferences: their loss summed over pairs, and what else `preference_losses` gives.

    Args:
        logits_or_losses: what the last layer has returned.
        this: the pass that it has run in.
    """
    if this.pairs is not None:
        labels_BT = this.labels_BT.to(logits_or_losses.device)
        is_token_losses = logits_or_losses.dim() == 2
        token_losses_BT = logits_or_losses if is_token_losses else token_cross_entropy(logits_or_losses, labels_BT)
        return preference_losses(token_losses_BT, labels_BT, this.pairs)
    if logits_or_losses.dim() == 1:
        return logits_or_losses
    parts = zip(logits_or_losses.chunk(len(this.labels)), this.labels, strict=True)
    return torch.stack([summed_cross_entropy(logits, labels_BT.to(logits.device)) for logits, labels_BT in parts])
