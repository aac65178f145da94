"""AdamW with the usual two parameter groups."""

from collections.abc import Iterable

import torch
from torch import nn

from training.config.schema import OptimizerConfig


def adamw(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """Return AdamW over matrices (decayed) and vectors (norm weights: not decayed); empty groups are left out.

    The learning rate is set anew before every step (`set_learning_rate`).
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        # ZeRO-3 leaves an empty tensor behind; ds_shape is then the real shape.
        num_dims = len(getattr(parameter, "ds_shape", parameter.shape))
        (matrices if num_dims >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
