"""Muon: which parameters it updates and at what rate, and the layouts that cannot have it."""

import pytest

from training.config.deepspeed_config import deepspeed_config
from training.config.load import compose
from training.config.optimizer_schema import MuonConfig, OptimizerConfig, OptimizerKind, ParameterGroup
from training.config.parameter_groups import GroupSettings, Named, grouped
from training.errors import ConfigError

DEMO = ["experiment=demo", "optimizer=muon"]
NAMES = (
    *("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"),
    *("model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.3.up_proj.weight", "lm_head.weight"),
)
ANNEAL = "stages.anneal.parallel"


def described(name: str) -> Named:
    return Named(name=name, is_matrix="norm" not in name, is_shared=False)


def config(**groups: ParameterGroup) -> OptimizerConfig:
    muon = MuonConfig(lr=0.02, weight_decay=0.01)
    return OptimizerConfig(lr=0.002, weight_decay=0.1, kind=OptimizerKind.muon, muon=muon, groups=groups)


def test_muon_updates_hidden_matrices_and_adamw_the_rest() -> None:
    hidden, matrices, vectors = grouped(config(), NAMES, described)
    assert hidden == (GroupSettings(lr_ratio=10.0, weight_decay=0.01, uses_muon=True), [NAMES[2], NAMES[4]])
    assert matrices == (GroupSettings(lr_ratio=1.0, weight_decay=0.1), [NAMES[0], NAMES[3], NAMES[5]])
    assert vectors == (GroupSettings(lr_ratio=1.0, weight_decay=0.0), [NAMES[1]])


def test_a_group_by_name_keeps_muons_rate_and_decay_apart_from_adamws() -> None:
    slow = ParameterGroup(parameters=["model.layers.*"], lr_ratio=0.5)
    groups = grouped(config(slow=slow), NAMES, described)
    assert [(settings.lr_ratio, settings.weight_decay, settings.uses_muon) for settings, _ in groups] == [
        (5.0, 0.01, True),
        (0.5, 0.1, False),
        (0.5, 0.0, False),
        (1.0, 0.1, False),
    ]


def test_deepspeed_neither_clips_muons_updates_nor_scatters_its_gradients() -> None:
    run = compose(DEMO)
    assert run.optimizer.gradient_clip_norm > 0
    for name in run.stages:
        dictionary = deepspeed_config(run, name)
        assert dictionary["gradient_clipping"] == 0.0
        assert dictionary["zero_optimization"]["reduce_scatter"] is False
    bf16 = compose([*DEMO, "precision=bf16", "parallel@stages.pretrain.parallel=zero1"])
    assert deepspeed_config(bf16, "pretrain")["gradient_clipping"] == run.optimizer.gradient_clip_norm


@pytest.mark.parametrize(
    ("overrides", "reason", "remedies"),
    [
        (
            ["parallel@stages.anneal.parallel=zero1"],
            "before its norm is known",
            [["parallel@stages.anneal.parallel=zero3"], ["precision=bf16"]],
        ),
        (["parallel@stages.anneal.parallel=zero2"], "before its norm is known", [[f"{ANNEAL}.zero_stage=3"]]),
        (["parallel@stages.anneal.parallel=zero2", "precision=bf16"], "whole matrices", [[f"{ANNEAL}.zero_stage=3"]]),
        (
            ["parallel@stages.anneal.parallel=zero1", f"{ANNEAL}.zero_stage=0"],
            "steps that are to be left out",
            [[f"{ANNEAL}.zero_stage=3"]],
        ),
        (
            [f"{ANNEAL}.zero_stage=1", "precision=bf16"],
            "takes no Muon in a pipeline",
            [[f"{ANNEAL}.zero_stage=3"], ["optimizer=adamw"]],
        ),
        (
            ["parallel@stages.anneal.parallel=pipeline"],
            "before its norm is known",
            [[f"{ANNEAL}.pipeline_engine=autarky", f"{ANNEAL}.zero_stage=3"]],
        ),
    ],
)
def test_a_layout_that_cannot_have_muon_is_refused_with_what_can(
    overrides: list[str], reason: str, remedies: list[list[str]]
) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([*DEMO, *overrides])
    assert caught.value.key == f"{ANNEAL}.zero_stage"
    assert reason in caught.value.reason
    for remedy in remedies:
        compose([*DEMO, *overrides, *remedy])


def test_muons_settings_without_muon_are_refused() -> None:
    with pytest.raises(ConfigError, match="it would be ignored"):
        compose(["experiment=demo", "+optimizer.muon.momentum=0.9"])
