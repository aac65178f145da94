import pytest

from tests.unit.models.configs import KINDS
from training.config.model_schema import ExpertsConfig, ModelConfig
from training.config.optimizer_schema import OptimizerConfig
from training.models import decoder
from training.models.sizes import layer_costs, num_parameters
from training.rehearsal.parameters import chunk_layers, decoder_layers, distinct, optimizer_groups


@pytest.mark.parametrize("model", KINDS.values(), ids=KINDS)
def test_parameters_are_those_of_the_model_in_its_order(model: ModelConfig) -> None:
    whole = decoder.Decoder(decoder.decoder_layers(model, seed=0))
    real = [(name, tuple(parameter.shape)) for name, parameter in whole.canonical_parameters()]
    assert [(p.name, p.shape) for p in distinct(decoder_layers(model))] == real


@pytest.mark.parametrize("model", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("part", [range(0, 2), range(2, 6), range(0, 6)])
def test_a_part_has_a_copy_of_a_tied_weight_if_its_owner_is_elsewhere(model: ModelConfig, part: range) -> None:
    real = decoder.Decoder([decoder.decoder_layers(model, seed=0)[index] for index in part])
    mine = distinct(chunk_layers(decoder_layers(model), part))
    assert [p.name for p in mine] == [name for name, _ in real.canonical_parameters()]
    tied = [p for p in mine if p.is_tied]
    assert len(tied) == (model.tied_embeddings and len(part) < 6)
    assert [p.is_copy for p in tied] == [part.start > 0] * len(tied)


def test_experts_are_as_many_parameters_as_the_sizes_say() -> None:
    experts = ExpertsConfig(
        num_experts=6, experts_per_token=2, expert_ffn_size=40, num_shared_experts=1, num_dense_layers=1
    )
    model = ModelConfig(
        vocab_size=96,
        hidden_size=48,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        ffn_size=80,
        max_sequence_length=64,
        experts=experts,
    )
    layers = decoder_layers(model)
    assert sum(p.numel for p in distinct(layers)) == num_parameters(model)
    for layer, cost in zip(layers, layer_costs(model, 1), strict=True):
        assert sum(p.numel for p in layer.parameters) == cost.num_parameters
        assert sum(p.numel for p in layer.parameters if p.expert is not None) == cost.num_expert_parameters


def test_tensor_parts_of_a_parameter_are_the_whole_and_vectors_are_not_cut() -> None:
    for parameter in distinct(decoder_layers(KINDS["grouped queries"])):
        part = parameter.tensor_part(2)
        assert part.numel * (2 if parameter.is_matrix else 1) == parameter.numel


def test_optimizer_groups_hold_every_parameter_once() -> None:
    layers = decoder_layers(KINDS["tied"])
    parameters = distinct(chunk_layers(layers, range(0, 3)))
    groups = optimizer_groups(OptimizerConfig(lr=1.0), parameters)
    assert sorted(p.name for group in groups for p in group) == sorted(p.name for p in parameters)
    assert [p.name for p in groups[0]] == ["model.embed_tokens.weight"]
