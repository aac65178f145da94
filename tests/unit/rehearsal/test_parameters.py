import pytest
import torch

from tests.unit.models.configs import KINDS, model
from training.config.model_schema import ExpertsConfig, LatentAttentionConfig, ModelConfig
from training.config.optimizer_schema import OptimizerConfig
from training.config.schema import Recompute
from training.models import decoder
from training.models.axes import Axes, Axis
from training.models.layers import DecoderBlock
from training.models.sizes import layer_costs, num_parameters
from training.rehearsal.axis_program import AxisProgram
from training.rehearsal.grid import Grid
from training.rehearsal.parameters import Parameter, chunk_layers, decoder_layers, distinct, optimizer_groups

EXPERTS = ExpertsConfig(
    num_experts=6, experts_per_token=2, expert_ffn_size=40, num_shared_experts=2, num_dense_layers=1
)
LATENT = LatentAttentionConfig(kv_rank=16, query_rank=24, head_size=8, rope_head_size=4, value_head_size=6)
ALL_KINDS = {
    **KINDS,
    "norms of queries and keys, wide heads": model(qk_norm=True, head_size=12),
    "latent attention": model(latent_attention=LATENT),
    "latent attention, direct queries": model(
        latent_attention=LatentAttentionConfig(kv_rank=16, head_size=8, rope_head_size=4, value_head_size=6)
    ),
    "experts": model(experts=EXPERTS),
    "experts, latent attention": model(experts=EXPERTS, latent_attention=LATENT),
}


@pytest.mark.parametrize("model", ALL_KINDS.values(), ids=ALL_KINDS)
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


@pytest.mark.parametrize("model", ALL_KINDS.values(), ids=ALL_KINDS)
def test_there_are_as_many_elements_as_the_sizes_say(model: ModelConfig) -> None:
    layers = decoder_layers(model)
    assert sum(p.numel for p in distinct(layers)) == num_parameters(model)
    for layer, cost in zip(layers, layer_costs(model, 1), strict=True):
        if cost.num_parameters:
            assert sum(p.numel for p in layer.parameters) == cost.num_parameters
        assert sum(p.numel for p in layer.parameters if p.is_expert) == cost.num_expert_parameters


def test_parts_of_stacked_experts_are_those_that_a_rank_of_the_expert_axis_holds() -> None:
    config = ALL_KINDS["experts"]
    whole = {p.name: p for layer in decoder_layers(config) for p in layer.parameters if p.is_expert}
    for place in range(3):
        axes = Axes(expert=Axis(3, place))
        for block in decoder.Decoder(decoder.decoder_layers(config, seed=0, axes=axes)).experts_apart():
            name, experts = block
            for matrix, parameter in experts.named_parameters():
                part = whole[f"{name}.{matrix}"].expert_part(place, 3)
                assert part.shape == tuple(parameter.shape)
                assert part.start == experts.first_expert * parameter[0].numel()
                assert part.whole_numel == whole[f"{name}.{matrix}"].numel


@pytest.mark.parametrize(
    "kind", ["grouped queries", "norms of queries and keys, wide heads", "experts, latent attention"]
)
@pytest.mark.parametrize("recompute", Recompute)
def test_gradients_are_complete_in_the_order_of_the_trace_in_reverse(kind: str, recompute: Recompute) -> None:
    config = ALL_KINDS[kind]
    block = DecoderBlock(config, recompute, "model.layers.2", has_experts=config.experts is not None)
    arrived: list[str] = []
    for name, parameter in block.named_parameters():
        torch.nn.init.normal_(parameter)
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(f"model.layers.2.{name}"))
    block(torch.randn(2, 16, config.hidden_size, requires_grad=True)).sum().backward()
    axes = AxisProgram(grid=Grid(), model=config, num_sequences=2, num_tokens=32, dtype="float32")
    layer = decoder_layers(config)[3]
    assert arrived == [step.name for step in reversed(axes.trace(layer)) if isinstance(step, Parameter)]


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
