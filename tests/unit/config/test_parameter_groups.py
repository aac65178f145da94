"""Parameter groups by name: what is in which, what is refused, and that the names are those of the built models."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.models.configs import KINDS
from training.config.load import compose
from training.config.model_schema import ModelConfig
from training.config.optimizer_schema import OptimizerConfig, ParameterGroup
from training.config.overrides import group_choices
from training.config.parameter_groups import GroupSettings, Named, group_of, grouped
from training.config.parameter_names import parameter_names
from training.errors import ConfigError
from training.models.decoder import Decoder, decoder_layers
from training.rehearsal.parameters import decoder_layers as rehearsed_layers
from training.rehearsal.parameters import distinct

NAMES = ("a.norm.weight", "a.q.weight", "b.norm.weight", "b.q.weight", "embedding.weight")
ENGINE_OF_DEEPSPEED = ["parallel=pipeline", "cluster.processes_per_node=2"]


def described(name: str) -> Named:
    return Named(name=name, is_matrix="norm" not in name, is_shared=name.startswith("embedding"))


def settings(lr_ratio: float, weight_decay: float) -> GroupSettings:
    return GroupSettings(lr_ratio=lr_ratio, weight_decay=weight_decay)


def optimizer(**groups: ParameterGroup) -> OptimizerConfig:
    return OptimizerConfig(lr=1.0, weight_decay=0.1, groups=groups)


def preset(name: str) -> ModelConfig:
    return compose([f"model={name}", "run.root=/r"], to_plan=True).model


def test_without_groups_matrices_are_decayed_and_vectors_are_not() -> None:
    assert grouped(optimizer(), NAMES, described) == [
        (settings(1.0, 0.1), ["embedding.weight"]),
        (settings(1.0, 0.1), ["a.q.weight", "b.q.weight"]),
        (settings(1.0, 0.0), ["a.norm.weight", "b.norm.weight"]),
    ]


def test_a_group_keeps_the_usual_decay_unless_it_has_its_own() -> None:
    slow = ParameterGroup(parameters=["a.*"], lr_ratio=0.1)
    decayed = ParameterGroup(parameters=["b.*"], weight_decay=0.3)
    assert grouped(optimizer(slow=slow, decayed=decayed), NAMES, described)[1:] == [
        (settings(0.1, 0.1), ["a.q.weight"]),
        (settings(0.1, 0.0), ["a.norm.weight"]),
        (settings(1.0, 0.3), ["b.q.weight"]),
        (settings(1.0, 0.3), ["b.norm.weight"]),
    ]


def test_a_weight_that_pipeline_stages_share_is_apart_from_its_group() -> None:
    slow = ParameterGroup(parameters=["embedding.*", "a.q.*"], lr_ratio=0.5)
    assert grouped(optimizer(slow=slow), NAMES, described)[:2] == [
        (settings(0.5, 0.1), ["embedding.weight"]),
        (settings(0.5, 0.1), ["a.q.weight"]),
    ]


def test_the_first_group_that_names_a_parameter_counts() -> None:
    config = optimizer(norms=ParameterGroup(parameters=["*norm*"]), a=ParameterGroup(parameters=["a.*"]))
    assert [group_of(config, name) for name in NAMES] == ["norms", "a", "norms", None, None]


@given(st.lists(st.sampled_from(["a.*", "*.q.*", "*norm*", "*", "nothing"]), min_size=0, max_size=4))
def test_every_parameter_is_in_one_group_of_the_optimizer(patterns: list[str]) -> None:
    config = optimizer(**{f"g{i}": ParameterGroup(parameters=[pattern]) for i, pattern in enumerate(patterns)})
    groups = grouped(config, NAMES, described)
    assert sorted(name for _, names in groups for name in names) == sorted(NAMES)
    assert all(len({described(name).is_shared for name in names}) == 1 for _, names in groups)


@pytest.mark.parametrize("model", KINDS.values(), ids=KINDS)
def test_names_are_those_of_the_built_model(model: ModelConfig) -> None:
    built = Decoder(decoder_layers(model, seed=0))
    assert parameter_names(model) == [name for name, _ in built.canonical_parameters()]


@pytest.mark.parametrize("name", group_choices("model"))
def test_names_of_every_preset_are_those_of_the_model_on_the_meta_device(name: str) -> None:
    model = preset(name)
    assert parameter_names(model) == [p.name for p in distinct(rehearsed_layers(model))]
    with torch.device("meta"):
        built = Decoder(decoder_layers(model, seed=0))
    assert parameter_names(model) == [given for given, _ in built.canonical_parameters()]


def test_groups_of_a_config_are_read_in_order() -> None:
    groups = ["+optimizer.groups.norms={parameters: ['*norm.weight'], weight_decay: 0.0}"]
    groups += ["+optimizer.groups.head={parameters: [lm_head.weight, model.embed_tokens.weight], lr_ratio: 0.5}"]
    config = compose(["model=smollm2_135m", "model.tied_embeddings=false", *groups])
    assert list(config.optimizer.groups) == ["norms", "head"]
    assert config.optimizer.groups["head"].lr_ratio == 0.5


@pytest.mark.parametrize(
    ("overrides", "key", "reason", "remedy"),
    [
        (
            ["+optimizer.groups.slow={parameters: ['model.layers.*.mlp.gate.weight']}"],
            "optimizer.groups.slow.parameters.0",
            "no parameter of the model has such a name",
            "nearest are model.layers.*.mlp.gate_proj.weight",
        ),
        (
            ["+optimizer.groups.slow={parameters: []}"],
            "optimizer.groups.slow.parameters",
            "has no parameters",
            "~optimizer.groups.slow",
        ),
        (
            [
                "+optimizer.groups.all={parameters: ['*']}",
                "+optimizer.groups.norms={parameters: ['*norm.weight']}",
            ],
            "optimizer.groups.norms.parameters",
            "everything it names is in all",
            "name norms before all",
        ),
        (
            ["+optimizer.groups.slow={parameters: ['*'], lr_ratio: -1}"],
            "optimizer.groups.slow.lr_ratio",
            "at least 0",
            "lr_ratio=0",
        ),
        (
            [*ENGINE_OF_DEEPSPEED, "+optimizer.groups.slow={parameters: ['*norm.weight']}"],
            "optimizer.groups",
            "same groups on every pipeline stage",
            "parallel.pipeline_engine=autarky",
        ),
    ],
)
def test_groups_that_cannot_be_are_refused(overrides: list[str], key: str, reason: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.key == key
    assert reason in caught.value.reason
    assert remedy in caught.value.remedy
