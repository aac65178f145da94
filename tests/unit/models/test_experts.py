"""Routing, its balancing, and experts beside the plain formula: each token through each expert it chose."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.config.model_schema import BalanceScope, ExpertsConfig, ModelConfig, RouterScore
from training.models.axes import Axis
from training.models.decoder import Decoder, blocks_with_experts, decoder_layers
from training.models.experts import Experts, MixtureOfExperts, _permute, loop_of_products
from training.models.router import Router, balance_loss, z_loss
from training.models.routing_log import RoutingLog, RoutingNote, RoutingResult, routing_into

EXPERTS: dict[str, Any] = {"num_experts": 6, "experts_per_token": 2, "expert_ffn_size": 12}


def model_with(**options: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=64,
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        ffn_size=24,
        max_sequence_length=32,
        experts=ExpertsConfig(**{**EXPERTS, **options}),
    )


def mixture(**options: Any) -> MixtureOfExperts:
    torch.manual_seed(3)
    module = MixtureOfExperts(model_with(**options))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def one_by_one(module: MixtureOfExperts, hidden_ND: Tensor) -> Tensor:
    """Each token through its experts, without any sorting."""
    routing = module.gate(hidden_ND)
    rows = []
    for token, hidden_D in enumerate(hidden_ND):
        out_D = torch.zeros_like(hidden_D)
        for expert, weight in zip(routing.experts_NK[token].tolist(), routing.weights_NK[token], strict=True):
            gate, up, down = (getattr(module.experts, name)[expert] for name in ("gate_proj", "up_proj", "down_proj"))
            out_D = out_D + weight * (down @ (F.silu(gate @ hidden_D) * (up @ hidden_D)))
        rows.append(out_D)
    out_ND = torch.stack(rows)
    return out_ND if module.shared_experts is None else out_ND + module.shared_experts(hidden_ND)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_shared_experts": 2},
        {"score": RouterScore.sigmoid, "weight_scale": 2.5, "bias_update_rate": 0.1},
        {"score": RouterScore.sigmoid, "num_groups": 3, "groups_per_token": 2},
        {"normalize_weights": False, "experts_per_token": 1},
        {"experts_per_token": 6},
    ],
)
def test_outputs_and_gradients_are_those_of_the_plain_formula(options: dict[str, Any]) -> None:
    module = mixture(**options)
    if module.gate.bias_E is not None:
        module.gate.bias_E.copy_(torch.randn(6))
    hidden_BTD = torch.randn(2, 5, 16, requires_grad=True)
    gradient = torch.randn(2, 5, 16)
    wanted = [hidden_BTD, *module.parameters()]
    found = torch.autograd.grad(module(hidden_BTD), wanted, gradient)
    plain_ND = one_by_one(module, hidden_BTD.flatten(0, 1))
    expected = torch.autograd.grad(plain_ND.view_as(hidden_BTD), wanted, gradient)
    assert torch.allclose(module(hidden_BTD), plain_ND.view_as(hidden_BTD), atol=1e-6)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_of_any_width_run_also_where_the_grouped_product_takes_only_some(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    experts = Experts(18, ExpertsConfig(num_experts=2, experts_per_token=1, expert_ffn_size=10), Axis())
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows = torch.randn(5, 18)
    expected = experts(rows, torch.tensor([2, 3]))
    found = experts.to(dtype)(rows.to(dtype), torch.tensor([2, 3]))
    assert torch.allclose(found.float(), expected, atol=1e-6 if dtype is torch.float32 else 0.1)


def test_experts_that_no_row_arrives_for_get_zero_gradients() -> None:
    experts = Experts(16, ExpertsConfig(num_experts=2, experts_per_token=1, expert_ffn_size=8), Axis())
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    arrived = torch.zeros(0, 16, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    _permute(experts(_permute(arrived, none), torch.tensor([0, 0])), none).sum().backward()
    assert arrived.grad is not None
    assert arrived.grad.shape == (0, 16)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in experts.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_a_loop_over_experts_gives_what_the_grouped_product_gives(counts: list[int], dtype: torch.dtype) -> None:
    rows, weights = torch.randn(sum(counts), 16, dtype=dtype), torch.randn(len(counts), 24, 16, dtype=dtype)
    counts_X = torch.tensor(counts)
    looped = loop_of_products(rows, weights, counts_X)
    if sum(counts):
        grouped = F.grouped_mm(rows, weights.transpose(-1, -2), offs=counts_X.cumsum(0).to(torch.int32))
        assert torch.allclose(looped.float(), grouped.float(), atol=1e-5 if dtype is torch.float32 else 0.2)
    assert looped.shape == (sum(counts), 24)


def test_an_expert_that_no_token_chose_has_a_gradient_of_zeros() -> None:
    module = mixture(bias_update_rate=0.1)
    assert module.gate.bias_E is not None
    module.gate.bias_E.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0, 0.0, 0.0]))
    module(torch.randn(2, 5, 16)).sum().backward()
    for parameter in module.experts.parameters():
        assert parameter.grad is not None
        assert parameter.grad[:2].abs().sum() > 0
        assert not parameter.grad[2:].any()


def test_a_capacity_drops_the_latest_tokens_of_a_crowded_expert_and_no_others() -> None:
    free, capped = mixture(bias_update_rate=0.1), mixture(bias_update_rate=0.1, capacity_factor=1.0)
    for module in (free, capped):
        assert module.gate.bias_E is not None
        module.gate.bias_E.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0, 0.0, 0.0]))  # all tokens choose expert 0
    hidden_BTD = torch.randn(1, 12, 16)  # an even share is 12 tokens x 2 / 6 experts = 4
    routing = free.gate(hidden_BTD[0])
    lost = [t for t in range(12) if t >= 4]
    crowd = torch.zeros(12, 6)
    for token in range(12):
        for expert in routing.experts_NK[token].tolist():
            crowd[token, expert] = 1
    too_late = (crowd.cumsum(0) > 4) & (crowd > 0)
    assert set(too_late[:, 0].nonzero().flatten().tolist()) == set(lost)
    difference_N = (free(hidden_BTD) - capped(hidden_BTD))[0].abs().sum(-1)
    assert (difference_N > 1e-6).tolist() == too_late.any(-1).tolist()


@given(num_experts=st.integers(3, 8), per_token=st.integers(1, 2), scope=st.sampled_from(BalanceScope))
def test_the_balance_loss_of_even_routing_is_one_per_token(
    num_experts: int, per_token: int, scope: BalanceScope
) -> None:
    config = ExpertsConfig(num_experts=num_experts, experts_per_token=per_token, expert_ffn_size=4, balance_scope=scope)
    router = Router(num_experts, config)
    with torch.no_grad():
        router.weight.copy_(5 * torch.eye(num_experts))
    even_ND = torch.eye(num_experts).roll(1, 0) + 0.5 * torch.eye(num_experts)  # each chosen equally often
    found = balance_loss(router(even_ND), config, num_sequences=1, sequence=Axis())
    assert found.item() == pytest.approx(num_experts, rel=1e-5)
    crowded_ND = even_ND[:1].expand(num_experts, -1)
    assert balance_loss(router(crowded_ND), config, num_sequences=1, sequence=Axis()) > found


def test_the_balance_loss_of_sequences_is_the_sum_over_them() -> None:
    config = ExpertsConfig(**EXPERTS)
    router = Router(16, config)
    torch.nn.init.normal_(router.weight)
    sequences = torch.randn(3, 7, 16)
    together = balance_loss(router(sequences.flatten(0, 1)), config, num_sequences=3, sequence=Axis())
    apart = [balance_loss(router(one), config, num_sequences=1, sequence=Axis()) for one in sequences]
    assert together.item() == pytest.approx(sum(one.item() for one in apart), rel=1e-6)


def test_the_z_loss_is_the_squared_log_sum_of_exponentials() -> None:
    router = Router(16, ExpertsConfig(**EXPERTS))
    torch.nn.init.normal_(router.weight)
    hidden_ND = torch.randn(5, 16)
    expected = (router.weight @ hidden_ND.T).exp().sum(0).log().square().sum()
    assert z_loss(router(hidden_ND)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_losses_of_routers_reach_the_gradient_with_their_factor() -> None:
    hidden_BTD = torch.randn(2, 5, 16)
    with_losses, without = (
        mixture(balance_loss=0.5, z_loss=0.25),
        mixture(),
    )
    log = RoutingLog({"block": 0}, num_experts=6, experts_per_token=2)
    log.begin(0.125)
    out = with_losses(hidden_BTD, RoutingNote(log, "block"))
    assert torch.equal(out, without(hidden_BTD))
    (out.sum()).backward()
    routing = without.gate(hidden_BTD.flatten(0, 1))
    config = with_losses.config
    extra = config.balance_loss * balance_loss(routing, config, num_sequences=2, sequence=Axis())
    extra = extra + config.z_loss * z_loss(routing)
    (without(hidden_BTD).sum() + 0.125 * extra).backward()
    for (name, one), other in zip(with_losses.named_parameters(), without.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-5), name
    result = log.result(log.sums(), num_tokens=10)
    assert result.balance_loss + result.z_loss == pytest.approx(extra.item() / 10, rel=1e-5)
    assert sum(result.loads[0]) == 20
    assert 0 < result.entropy <= math.log(6)


def test_each_block_has_its_own_line_in_the_log_and_dense_ones_none() -> None:
    config = model_with(num_dense_layers=1)
    places = {name: place for place, name in enumerate(blocks_with_experts(config))}
    assert list(places) == ["model.layers.1", "model.layers.2"]
    log = RoutingLog(places, num_experts=6, experts_per_token=2)
    log.begin(1.0)
    model = Decoder(decoder_layers(config, seed=1))
    for _ in range(2):  # micro-batches
        with routing_into(log):
            model(torch.arange(8).view(2, 4))
    result = log.result(log.sums(), num_tokens=16)
    assert [sum(loads) for loads in result.loads] == [32, 32]


def test_numbers_for_people_name_the_crowded_block_and_the_dead_expert() -> None:
    result = RoutingResult(loads=((5, 5, 5, 5), (14, 6, 0, 0)), balance_loss=0.1, z_loss=0.2, entropy=math.log(2))
    numbers = result.numbers(expert_ranks=2)
    assert numbers["worst_load"] == pytest.approx(2.8)
    assert numbers["worst_block"] == 1
    assert numbers["dead"] == 2
    assert numbers["worst_rank_load"] == pytest.approx(2.0)
    assert numbers["entropy_of_even"] == pytest.approx(0.5)


def test_the_router_computes_in_float32_whatever_the_model_runs_in() -> None:
    router = Router(16, ExpertsConfig(**EXPERTS)).to(torch.bfloat16)
    torch.nn.init.normal_(router.weight)
    routing = router(torch.randn(5, 16, dtype=torch.bfloat16))
    assert routing.logits_NE.dtype is routing.weights_NK.dtype is torch.float32
