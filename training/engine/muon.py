"""DeepSpeed's Muon, with torch's AdamW for all but hidden matrices. docs/adr/0015 says where it can be had."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from training.config.optimizer_schema import OptimizerConfig


def muon(
    config: OptimizerConfig, groups: Iterable[dict[str, Any]], adamw_settings: dict[str, Any]
) -> torch.optim.Optimizer:
    """Return DeepSpeed's optimizer over groups of which each says with `use_muon` what updates it.

    ZeRO does Muon's work itself, for parameters that are marked so (DeepSpeed 0.19.8, runtime/zero/stage3.py,
    `_apply_muon_to_accumulated_grads`; runtime/bf16_optimizer.py, `_prepare_muon_updates`).
    """
    # Here, because importing it sets up compilation, which takes seconds, and not all who import this build an engine.
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    marked = []
    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]
        if group["use_muon"]:
            group = group | {"lr": 0.0, "momentum": config.muon.momentum, "ns_method": config.muon.newton_schulz.value}
        marked.append(group)
    return MuonWithAuxAdam(marked, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs=adamw_settings)


def has_muon(optimizer: Any) -> bool:
    """Return whether Muon updates some of an optimizer's groups."""
    return any(group["use_muon"] for group in optimizer.param_groups)


def eager_on(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which nothing is compiled on CPU, where compiling Muon's few products takes a minute."""
    return torch.compiler.set_stance("force_eager") if device.type == "cpu" else nullcontext()
