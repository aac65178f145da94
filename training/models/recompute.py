"""Activation recompute: trade a second forward of a block for the memory of its activations.

Recompute happens inside the block, in every engine: DeepSpeed's own pipeline checkpointing runs the second forward
without ZeRO-3's gather hooks (0.19.8: "size of tensor a (0) must match").
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from training.config.schema import Recompute

_SAVED_OPERATORS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""Results that selective recompute keeps: matrix products and attention, the costly part of a block.

Same choice as torchtitan's per-op selective activation checkpointing.
"""


def _keep_matrix_products(_context: object, operator: object, *_args: object, **_kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _SAVED_OPERATORS else CheckpointPolicy.PREFER_RECOMPUTE


def run_block(block: Callable[[Tensor], Tensor], hidden_BTD: Tensor, recompute: Recompute) -> Tensor:
    """Return block(hidden_BTD), keeping only the activations that `recompute` allows for backward.

    Backward may call `block` again, outside of any context of the forward: what it computes must follow from its
    argument and from what is bound to it.
    """
    if recompute is Recompute.none or not torch.is_grad_enabled():
        return block(hidden_BTD)
    if recompute is Recompute.full:
        return checkpoint(block, hidden_BTD, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _keep_matrix_products)
    return checkpoint(block, hidden_BTD, use_reentrant=False, context_fn=contexts)
