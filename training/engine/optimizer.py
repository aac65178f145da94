"""AdamW with the usual two parameter groups."""

from collections.abc import Iterable

import torch
from torch import nn

from training.config.schema import OptimizerConfig


def adamw(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], *, shared: Iterable[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """Return AdamW over matrices (decayed) and vectors (norm weights: not decayed); empty groups are left out.

    Matrices that several pipeline stages hold (`shared`, among `parameters`) form a group of their own: ZeRO cuts
    every group into equal ranges, so each of those stages gets the same ranges of them.

    The learning rate is set anew before every step (`set_learning_rate`).
    """
    apart = list(shared)
    ids = {id(parameter) for parameter in apart}
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        if id(parameter) in ids:
            continue
        # ZeRO-3 leaves an empty tensor behind; ds_shape is then the real shape.
        num_dims = len(getattr(parameter, "ds_shape", parameter.shape))
        (matrices if num_dims >= 2 else vectors).append(parameter)
    groups = [
        {"params": apart, "weight_decay": config.weight_decay},
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
