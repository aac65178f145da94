"""What one forward is to learn from, besides its tokens: targets, and which tokens belong together.

Layers take one tensor and return one, so that a pipeline can cut anywhere between them. What a forward is for stands
around it, as `training/models/inference.py` does for passes in which nothing is learned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from training.config.schema import AttentionImplementation
from training.models.documents import Documents
from training.models.linear_cross_entropy import linear_cross_entropy
from training.models.loss import summed_cross_entropy


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


def logits_or_loss(hidden_BTD: Tensor, weight_VD: Tensor) -> Tensor:
    """Return logits [B, T, V]; of a pass that learns from more tokens than a chunk, its summed loss.

    The loss is made here, within the output projection: only while that module runs has ZeRO-3 gathered its weight.
    """
    this = _current_pass.get()
    if this is None or hidden_BTD.shape[:2].numel() <= this.loss_chunk_tokens:
        return F.linear(hidden_BTD, weight_VD)
    labels_BT = this.labels_BT.to(hidden_BTD.device)
    return linear_cross_entropy(hidden_BTD, weight_VD, labels_BT, chunk_tokens=this.loss_chunk_tokens)


def summed_loss(logits_or_loss: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the loss summed over valid targets, in nats: what the last layer has returned, if that was no logits."""
    if logits_or_loss.dim() == 0:
        return logits_or_loss
    return summed_cross_entropy(logits_or_loss, labels_BT)
