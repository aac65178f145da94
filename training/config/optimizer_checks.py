"""Whether the optimizer's groups name parameters of the model, and the engines can have them and Muon."""

import difflib
import fnmatch
from collections.abc import Sequence

from training.config.optimizer_schema import MuonConfig, OptimizerKind
from training.config.parameter_groups import group_of, unmatched
from training.config.parameter_names import parameter_names
from training.config.schema import PipelineEngineKind, Precision, RunConfig
from training.errors import ConfigError

_SHOWN = 3


def check_optimizer(config: RunConfig) -> None:
    """Check the optimizer's groups against the model.

    Raises:
        ConfigError: Muon is set but not chosen; or a group is empty, or one of its patterns names nothing, or nothing
            that no earlier group has.
    """
    optimizer = config.optimizer
    if optimizer.kind is OptimizerKind.adamw and optimizer.muon != MuonConfig():
        reason = "with optimizer.kind=adamw it would be ignored"
        raise ConfigError("optimizer.muon", "…", reason, "optimizer=muon, or leave it out")
    for name, group in optimizer.groups.items():
        if not group.parameters:
            key = f"optimizer.groups.{name}.parameters"
            raise ConfigError(key, "[]", "the group has no parameters", f"{key}=[PATTERN], or ~optimizer.groups.{name}")
    if not optimizer.groups:
        return
    names = parameter_names(config.model)
    for group, place, pattern in unmatched(optimizer, names):
        key = f"optimizer.groups.{group}.parameters"
        taken = sorted({other for name in fnmatch.filter(names, pattern) if (other := group_of(optimizer, name))})
        if taken:
            reason = f"everything it names is in {', '.join(taken)}, and the first group that names a parameter counts"
            raise ConfigError(key, pattern, reason, f"name {group} before {taken[0]}, or take the pattern out")
        near = ", ".join(_nearest(names, pattern))
        raise ConfigError(f"{key}.{place}", pattern, "no parameter of the model has such a name", f"nearest are {near}")


def check_groups_in_pipeline(config: RunConfig, training_stage: str) -> None:
    """Check that a training stage's engine can have groups by name.

    DeepSpeed's PipelineEngine adds up the norm of the gradient group by group over all pipeline stages (0.19.8,
    runtime/zero/stage_1_and_2.py, `get_grad_norm_direct`): it would wait for ever for a stage that has fewer groups.

    Raises:
        ConfigError: it is DeepSpeed's PipelineEngine.
    """
    layout = config.layout_of(training_stage)
    if config.optimizer.groups and layout.pipeline > 1 and layout.pipeline_engine is PipelineEngineKind.deepspeed:
        key = _layout_key(config, training_stage)
        raise ConfigError(
            "optimizer.groups",
            ", ".join(config.optimizer.groups),
            "DeepSpeed's PipelineEngine needs the same groups on every pipeline stage, and names differ between them",
            f"{key}.pipeline_engine=autarky can, or optimizer.groups={{}}",
        )


def check_muon(config: RunConfig, training_stage: str) -> None:
    """Check that a training stage's engine can run Muon as it is meant: docs/adr/0015.

    Raises:
        ConfigError: it cannot.
    """
    if config.optimizer.kind is not OptimizerKind.muon:
        return
    layout = config.layout_of(training_stage)
    key, bf16 = _layout_key(config, training_stage), config.precision is Precision.bf16
    if config.model.experts is not None:
        reason = "Muon has been compared with plain torch in dense models only"
        raise ConfigError("optimizer.kind", config.optimizer.kind, reason, "optimizer=adamw, or model.experts=null")
    if layout.zero_stage == 3 or (layout.zero_stage == 1 and layout.pipeline == 1 and bf16):
        return
    remedy = f"{key}.zero_stage=3 works, or optimizer=adamw"
    if layout.pipeline == 1 and not bf16:
        remedy = f"{key}.zero_stage=3 works, or precision=bf16 and {key}.zero_stage=1, or optimizer=adamw"
    if layout.pipeline > 1 and layout.pipeline_engine is PipelineEngineKind.deepspeed:
        remedy = f"{key}.pipeline_engine=autarky and {key}.zero_stage=3, or optimizer=adamw"
    reason = (
        "without ZeRO, DeepSpeed's Muon updates weights in steps that are to be left out"
        if layout.zero_stage == 0
        else "DeepSpeed's bf16 optimizer takes no Muon in a pipeline"
        if layout.zero_stage == 1 and bf16
        else "there DeepSpeed makes Muon's update of a gradient before its norm is known or clipped, and keeps the "
        "momentum of whole matrices on several ranks"
    )
    given = f"{layout.zero_stage} with optimizer.kind=muon, pipeline={layout.pipeline} and precision={config.precision}"
    raise ConfigError(f"{key}.zero_stage", given, reason, remedy)


def _layout_key(config: RunConfig, training_stage: str) -> str:
    own = config.stages[training_stage].parallel is not None
    return f"stages.{training_stage}.parallel" if own else "parallel"


def _nearest(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names, with * for the layer, that are most like a pattern."""
    forms = list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))
    return difflib.get_close_matches(pattern, forms, n=_SHOWN, cutoff=0.0)
