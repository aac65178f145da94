import pytest
import torch
from transformers import PreTrainedModel

from tests.unit.models.configs import ALL_KINDS, KINDS, OTHER_KINDS, model
from tests.unit.models.transformers_models import transformers_model
from training.config.schema import ModelConfig, Recompute
from training.models.decoder import Decoder, decoder_layers
from training.models.inference import InferencePass, KeyValueCache, inferring
from training.models.loss import summed_cross_entropy


def build(config: ModelConfig, *, seed: int = 0, recompute: Recompute = Recompute.none) -> Decoder:
    return Decoder(decoder_layers(config, seed=seed, recompute=recompute))


def token_ids(config: ModelConfig, num_tokens: int = 40) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (3, num_tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def take_weights(ours: Decoder, theirs: PreTrainedModel) -> None:
    """Copy transformers' weights, which in memory have our names, but for gates and up-projections of experts."""
    weights = {name: value.clone() for name, value in theirs.state_dict().items()}
    for name in [name for name in weights if name.endswith("gate_up_proj")]:
        gate, up = weights.pop(name).chunk(2, dim=1)
        weights |= {name.replace("gate_up_proj", "gate_proj"): gate, name.replace("gate_up_proj", "up_proj"): up}
    for name, parameter in ours.canonical_parameters():
        parameter.copy_(weights.pop(name))
    for block, router in ours.routers():
        if router.bias_E is not None:
            router.bias_E.copy_(weights.pop(f"{block}.mlp.gate.e_score_correction_bias"))
    assert set(weights) <= {"lm_head.weight"}, "tied, if it is left"


@pytest.mark.parametrize("kind", ALL_KINDS)
@torch.no_grad()
def test_logits_are_those_of_transformers_with_the_same_weights(kind: str) -> None:
    config = ALL_KINDS[kind]
    ours, theirs = build(config), transformers_model(config)
    take_weights(ours, theirs)
    ids = token_ids(config, 60)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", OTHER_KINDS)
@torch.no_grad()
def test_the_cache_gives_the_logits_of_the_whole_sequence(kind: str) -> None:
    config = OTHER_KINDS[kind]
    decoder, ids = build(config).eval(), token_ids(config)
    for _, router in decoder.routers():
        if router.bias_E is not None:
            router.bias_E.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(2))
    whole = decoder(ids)
    cache, num_sequences, begin = KeyValueCache(len(ids), ids.shape[1]), len(ids), 0
    for end in (13, 14, 15, 25, 40):
        num_tokens = end - begin
        rows_N = torch.arange(num_sequences).repeat_interleave(num_tokens)
        columns_N = torch.arange(num_tokens).repeat(num_sequences)
        with inferring(InferencePass(rows_N=rows_N, columns_N=columns_N, cache=cache)):
            logits_NV = decoder(ids[:, begin:end])
        cache.advance(torch.full((num_sequences,), num_tokens))
        torch.testing.assert_close(logits_NV, whole[:, begin:end].flatten(0, 1), rtol=1e-5, atol=1e-5)
        begin = end


def test_llama3_scaling_changes_the_logits() -> None:
    ids = token_ids(model())
    plain, scaled = (build(KINDS[kind])(ids) for kind in ("tied", "tied llama3 rope"))
    assert (plain - scaled).abs().max() > 1e-3


def test_a_token_sees_nothing_after_it() -> None:
    config = model()
    decoder, ids = build(config), token_ids(config)
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % config.vocab_size
    torch.testing.assert_close(decoder(ids)[:, :20], decoder(changed)[:, :20], rtol=0, atol=1e-6)


@pytest.mark.parametrize("recompute", [Recompute.full, Recompute.selective])
def test_recompute_changes_no_bit_of_the_gradient(recompute: Recompute) -> None:
    config = model(tied_embeddings=True)
    ids = token_ids(config)

    def gradients(how: Recompute) -> dict[str, torch.Tensor]:
        decoder = build(config, recompute=how)
        summed_cross_entropy(decoder(ids), ids).backward()
        return {name: p.grad for name, p in decoder.canonical_parameters() if p.grad is not None}

    plain, again = gradients(Recompute.none), gradients(recompute)
    assert plain.keys() == again.keys() != set()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def test_full_recompute_runs_every_block_twice() -> None:
    config = model()
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    decoder = build(config, recompute=Recompute.full)
    for name in decoder.names[1:-2]:
        decoder.layers[name.replace(".", "/")].get_submodule("mlp").register_forward_pre_hook(count)
    summed_cross_entropy(decoder(token_ids(config)), token_ids(config)).backward()
    assert runs == 2 * config.num_layers


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    two, three = (dict(build(model(num_layers=n, init_std=0.1)).canonical_parameters()) for n in (2, 3))
    torch.manual_seed(99)
    again = dict(build(model(num_layers=3)).canonical_parameters())
    other_seed = dict(build(model(num_layers=3), seed=1).canonical_parameters())
    for name, weight in three.items():
        assert torch.equal(weight, again[name]), "the global random state was used"
        assert weight.dim() < 2 or not torch.equal(weight, other_seed[name])
    # Projections into the residual stream are scaled by the depth; all others do not know it.
    for name in two.keys() - {n for n in two if n.endswith(("o_proj.weight", "down_proj.weight"))}:
        assert torch.equal(two[name], three[name]), name
    matrices = [weight for weight in three.values() if weight.dim() == 2]
    assert len({tuple(weight.flatten()[:8].tolist()) for weight in matrices}) == len(matrices)


def test_one_layer_built_alone_has_the_weights_it_has_in_the_whole_model() -> None:
    config = model()
    whole = dict(build(config).canonical_parameters())
    layer = decoder_layers(config, seed=0)[2]
    for name, weight in layer.build().named_parameters():
        assert torch.equal(weight, whole[f"{layer.name}.{name}"])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_will_be_loaded_are_not_drawn(kind: str) -> None:
    config = KINDS[kind]
    drawn = {name: weight.shape for name, weight in build(config).canonical_parameters()}
    before = torch.random.get_rng_state()
    decoder = Decoder(decoder_layers(config, seed=0, initial_weights=False))
    assert torch.equal(torch.random.get_rng_state(), before), "constructors drew too"
    assert {name: weight.shape for name, weight in decoder.canonical_parameters()} == drawn
    assert all(weight.requires_grad and not weight.any() for weight in decoder.parameters())
