"""The optimizer over the groups that the config makes of the parameters' names, and the learning rate of each."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from training.config.optimizer_schema import OptimizerConfig, OptimizerKind
from training.config.parameter_groups import Named, grouped
from training.engine.muon import muon


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[tuple[str, nn.Parameter]], *, shared: Iterable[str] = ()
) -> torch.optim.Optimizer:
    """Return the optimizer that the config asks for; the arguments are those of `adamw`."""
    if config.kind is OptimizerKind.muon:
        return muon(config, _groups(config, parameters, shared), _adamw_settings(config))
    return adamw(config, parameters, shared=shared)


def adamw(
    config: OptimizerConfig, parameters: Iterable[tuple[str, nn.Parameter]], *, shared: Iterable[str] = ()
) -> torch.optim.AdamW:
    """Return AdamW over the groups of `training.config.parameter_groups.grouped`.

    The learning rate is set anew before every step (`set_learning_rate`).

    Args:
        config: section `optimizer`.
        parameters: (canonical name, parameter).
        shared: names of those that other pipeline stages hold too.
    """
    return torch.optim.AdamW(_groups(config, parameters, shared), **_adamw_settings(config))


def _adamw_settings(config: OptimizerConfig) -> dict[str, Any]:
    return {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.epsilon}


def _groups(
    config: OptimizerConfig, parameters: Iterable[tuple[str, nn.Parameter]], shared: Iterable[str]
) -> list[dict[str, Any]]:
    """Return groups as torch's optimizers take them, with `lr_ratio` for `set_learning_rate` and `use_muon`."""
    apart = frozenset(shared)

    def describe(pair: tuple[str, nn.Parameter]) -> Named:
        name, parameter = pair
        # ZeRO-3 leaves an empty tensor behind; ds_shape is then the real shape.
        num_dims = len(getattr(parameter, "ds_shape", parameter.shape))
        return Named(name=name, is_matrix=num_dims >= 2, is_shared=name in apart)

    return [
        {
            "params": [parameter for _, parameter in pairs],
            "weight_decay": settings.weight_decay,
            "lr_ratio": settings.lr_ratio,
            "use_muon": settings.uses_muon,
        }
        for settings, pairs in grouped(config, parameters, describe)
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group its multiple of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]
