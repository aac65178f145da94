"""Whether the optimizer's groups name parameters of the model, and the engines can have them."""

import difflib
import fnmatch
from collections.abc import Sequence

from training.config.parameter_groups import group_of, unmatched
from training.config.parameter_names import parameter_names
from training.config.schema import PipelineEngineKind, RunConfig
from training.errors import ConfigError

_SHOWN = 3


def check_optimizer(config: RunConfig) -> None:
    """Check the optimizer's groups against the model.

    Raises:
        ConfigError: a group is empty, or one of its patterns names nothing, or nothing that no earlier group has.
    """
    optimizer = config.optimizer
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
        own = config.stages[training_stage].parallel is not None
        key = f"stages.{training_stage}.parallel" if own else "parallel"
        raise ConfigError(
            "optimizer.groups",
            ", ".join(config.optimizer.groups),
            "DeepSpeed's PipelineEngine needs the same groups on every pipeline stage, and names differ between them",
            f"{key}.pipeline_engine=autarky can, or optimizer.groups={{}}",
        )


def _nearest(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names, with * for the layer, that are most like a pattern."""
    forms = list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))
    return difflib.get_close_matches(pattern, forms, n=_SHOWN, cutoff=0.0)
