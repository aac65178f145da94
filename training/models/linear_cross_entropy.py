"""The loss straight from hidden states: logits exist for a chunk of tokens at a time, never whole.

Both gradients are made in the forward, chunk by chunk, so that nothing is computed twice: the method of Liger Kernel's
fused linear cross-entropy (arXiv:2410.10989, section 3.2). torch 2.13 has a function of that name too. For bf16 it
gives the sum itself in bf16 and adds up the weight's gradient in bf16, whose error grows with the number of chunks (16
chunks: 0.4 %, 128: 1.2 %, here 0.2 %); a run's loss is fp32 in every layout.

Shape suffixes: B sequences, T tokens, N tokens of all sequences, D hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.models.activation_memory import PRODUCT_ROWS
from training.models.loss import IGNORED_LABEL, token_cross_entropy


def linear_cross_entropy(hidden_BTD: Tensor, weight_VD: Tensor, labels_BT: Tensor, *, chunk_tokens: int) -> Tensor:
    """Return `summed_cross_entropy(hidden·weightᵀ, labels)`, in nats, as a float32 scalar.

    Args:
        hidden_BTD: hidden states, of the weight's dtype.
        weight_VD: the output projection; it may be frozen.
        labels_BT: int64 targets, IGNORED_LABEL where there is none.
        chunk_tokens: tokens whose logits may exist at a time, at least 1.
    """
    hidden_ND, labels_N = hidden_BTD.flatten(0, 1), labels_BT.flatten()
    num_chunks = -(-len(labels_N) // chunk_tokens)
    loss = _LinearCrossEntropy.apply(hidden_ND, weight_VD, labels_N, num_chunks)
    assert isinstance(loss, Tensor)
    return loss


def linear_token_losses(hidden_BTD: Tensor, weight_VD: Tensor, labels_BT: Tensor, *, chunk_tokens: int) -> Tensor:
    """Return `token_cross_entropy(hidden·weightᵀ, labels)`, in nats, float32 [B, T].

    What the loss of a token is multiplied by is not known yet, so backward makes the logits anew, chunk by chunk.

    Args:
        hidden_BTD: hidden states, of the weight's dtype.
        weight_VD: the output projection; it may be frozen.
        labels_BT: int64 targets, IGNORED_LABEL where there is none.
        chunk_tokens: tokens whose logits may exist at a time, at least 1.
    """
    hidden_ND, labels_N = hidden_BTD.flatten(0, 1), labels_BT.flatten()
    num_chunks = -(-len(labels_N) // chunk_tokens)
    losses_N = _LinearTokenLosses.apply(hidden_ND, weight_VD, labels_N, num_chunks)
    assert isinstance(losses_N, Tensor)
    return losses_N.view(labels_BT.shape)


class _LinearTokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, num_chunks: int) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, labels_N)
        ctx.num_chunks = num_chunks
        chunks = zip(hidden_ND.tensor_split(num_chunks), labels_N.tensor_split(num_chunks), strict=True)
        losses = [token_cross_entropy((hidden_CD @ weight_VD.t())[None], labels[None]) for hidden_CD, labels in chunks]
        return torch.cat(losses, dim=1)[0]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_ND, weight_VD, labels_N = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        _, to_hidden, to_weight = _in_chunks(hidden_ND, weight_VD, labels_N, ctx.num_chunks, needs, gradients[0])
        return to_hidden, None if to_weight is None else to_weight.to(weight_VD.dtype), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, num_chunks: int) -> Tensor:
        needs = ctx.needs_input_grad[:2]
        loss, hidden_gradient_ND, weight_gradient_VD = _in_chunks(hidden_ND, weight_VD, labels_N, num_chunks, needs)
        ctx.save_for_backward(hidden_gradient_ND, weight_gradient_VD)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_gradient_ND, weight_gradient_VD = ctx.saved_tensors
        if hidden_gradient_ND is not None:
            hidden_gradient_ND = hidden_gradient_ND * gradients[0]
        if weight_gradient_VD is not None:  # scaled in fp32, rounded once
            rounded_VD = torch.empty_like(weight_gradient_VD, dtype=ctx.weight_dtype)
            weight_gradient_VD = torch.mul(weight_gradient_VD, gradients[0], out=rounded_VD)
        return hidden_gradient_ND, weight_gradient_VD, None, None


def _in_chunks(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    num_chunks: int,
    needs: tuple[bool, bool],
    factors_N: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the summed loss, and its gradients by the hidden states and, in float32, by the weight, where needed.

    With factors the gradients are those of the tokens' losses each times its own.
    """
    hidden_gradient_ND = torch.empty_like(hidden_ND) if needs[0] else None
    weight_gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs[1] else None
    loss = hidden_ND.new_zeros((), dtype=torch.float32)
    start = 0
    for hidden_CD, labels_C in zip(hidden_ND.tensor_split(num_chunks), labels_N.tensor_split(num_chunks), strict=True):
        rows = slice(start, start := start + len(labels_C))
        factors_C = None if factors_N is None else factors_N[rows]
        losses_C, logits_gradient_CV = _losses_and_gradient(hidden_CD @ weight_VD.t(), labels_C, factors_C)
        loss += losses_C.sum()
        if hidden_gradient_ND is not None:
            torch.mm(logits_gradient_CV, weight_VD, out=hidden_gradient_ND[rows])
        if weight_gradient_VD is not None:
            _add_product(weight_gradient_VD, logits_gradient_CV.t(), hidden_CD)
        del logits_gradient_CV  # before the next chunk's logits are made
    return loss, hidden_gradient_ND, weight_gradient_VD


def _losses_and_gradient(logits_CV: Tensor, labels_C: Tensor, factors_C: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the loss of each of the chunk's tokens, and their sum's gradient by the logits, which are overwritten.

    With factors it is the gradient of the tokens' losses each times its own.

    As in `summed_cross_entropy` the softmax is computed in fp32, whatever the dtype of the logits.
    """
    dtype, scores_CV = logits_CV.dtype, logits_CV.float()
    del logits_CV
    valid_C1 = (labels_C != IGNORED_LABEL)[:, None]
    labels_C1 = labels_C[:, None].masked_fill(~valid_C1, 0)
    scores_CV.sub_(scores_CV.amax(-1, keepdim=True))
    chosen_C1 = scores_CV.gather(-1, labels_C1)
    sums_C1 = scores_CV.exp_().sum(-1, keepdim=True)
    losses_C1 = (sums_C1.log() - chosen_C1).masked_fill_(~valid_C1, 0.0)
    scores_CV.div_(sums_C1)
    scores_CV.scatter_add_(-1, labels_C1, torch.full_like(chosen_C1, -1.0))
    if factors_C is not None:
        scores_CV.mul_(factors_C[:, None])
    return losses_C1[:, 0], scores_CV.masked_fill_(~valid_C1, 0.0).to(dtype)


def _add_product(sum_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """Add a matrix product to a sum in fp32: products of bf16 matrices are made for some rows at a time."""
    if left_VC.dtype == sum_VD.dtype:
        sum_VD.addmm_(left_VC, right_CD)
        return
    for rows_sum, rows in zip(sum_VD.split(PRODUCT_ROWS), left_VC.split(PRODUCT_ROWS), strict=True):
        rows_sum += rows @ right_CD
