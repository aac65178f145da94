import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.models.configs import model
from training.config.schema import Recompute
from training.models.decoder import Decoder, decoder_layers
from training.models.dropout import DropoutKeys, drop_elements, dropout_of
from training.models.loss import summed_cross_entropy

CONFIG = model(dropout=0.2)
PLACE = "model.layers.1.mlp"


def build(recompute: Recompute = Recompute.none, **changes: float) -> Decoder:
    return Decoder(decoder_layers(model(**({"dropout": 0.2} | changes)), seed=0, recompute=recompute))


def sequences(num_sequences: int, num_tokens: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, CONFIG.vocab_size, (num_sequences, num_tokens), generator=generator)


def kept(
    sample_ids: Sequence[int], *, seed: int = 0, place: str = PLACE, probability: float = 0.2, num_tokens: int = 24
) -> Tensor:
    """Return which elements are kept, for each of the samples [T, 48]."""
    keys = DropoutKeys(seed=seed, sample_ids=tuple(sample_ids))
    return drop_elements(torch.ones(len(sample_ids), num_tokens, 48), probability, keys, place) != 0


def test_a_samples_mask_does_not_depend_on_its_batch() -> None:
    together = kept([7, 8, 9])
    assert torch.equal(kept([9, 7]), together[[2, 0]])
    assert torch.equal(kept([8])[0], together[1])


def test_masks_differ_between_samples_seeds_layers_and_branches() -> None:
    masks = [
        *kept([7, 8, -7, 2**62]),
        kept([7], seed=1)[0],
        kept([7], place="model.layers.1.self_attn")[0],
        kept([7], place="model.layers.11.mlp")[0],
    ]
    # Two independent masks agree in p² + (1-p)² = 0.68 of their elements, here with a deviation of 0.014.
    agreement = [(a == b).float().mean().item() for i, a in enumerate(masks) for b in masks[:i]]
    assert agreement == pytest.approx([0.68] * 21, abs=0.07)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_probability_in_every_sample(probability: float) -> None:
    shares = 1 - kept(range(8), probability=probability, num_tokens=400).flatten(1).float().mean(1)
    deviation = math.sqrt(probability * (1 - probability) / (400 * 48))
    assert shares.tolist() == pytest.approx([probability] * 8, abs=5 * deviation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_elements_are_scaled_so_that_the_expectation_stays(dtype: torch.dtype) -> None:
    values = torch.linspace(1.0, 2.0, 48).to(dtype)
    hidden_BTD = values.expand(64, 200, 48)
    keys = DropoutKeys(seed=0, sample_ids=tuple(range(64)))
    dropped = drop_elements(hidden_BTD, 0.1, keys, PLACE)
    assert dropped.dtype == dtype
    is_kept = dropped != 0
    scaled = (hidden_BTD.double() / 0.9).to(dtype)
    # bf16: no rounding but the result's; a scale rounded to bf16 first would be off by 0.16 % everywhere.
    rtol = 0.0 if dtype is torch.bfloat16 else 2e-7
    torch.testing.assert_close(dropped[is_kept], scaled[is_kept], rtol=rtol, atol=0)
    mean_D = dropped.double().mean((0, 1))
    torch.testing.assert_close(mean_D, values.double(), rtol=5 * math.sqrt(0.1 / 0.9 / (64 * 200)) + 2**-9, atol=0)


def test_the_gradient_passes_where_the_value_passed() -> None:
    hidden_BTD = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0), requires_grad=True)
    dropped = drop_elements(hidden_BTD, 0.5, DropoutKeys(seed=0, sample_ids=(3, 4)), PLACE)
    dropped.sum().backward()
    assert hidden_BTD.grad is not None
    assert torch.equal(hidden_BTD.grad, (dropped != 0) * 2.0)


def test_both_branches_of_every_block_drop_by_their_canonical_names() -> None:
    decoder, ids = build(), sequences(2)
    with dropout_of(torch.tensor([5, 6]), seed=9):
        actual = decoder(ids)
    keys = DropoutKeys(seed=9, sample_ids=(5, 6))
    layers = decoder.layers
    hidden = layers["model/embed_tokens"](ids)
    for i in range(CONFIG.num_layers):
        part = layers[f"model/layers/{i}"].get_submodule
        attended = part("self_attn")(part("input_layernorm")(hidden))
        hidden = hidden + drop_elements(attended, 0.2, keys, f"model.layers.{i}.self_attn")
        fed_forward = part("mlp")(part("post_attention_layernorm")(hidden))
        hidden = hidden + drop_elements(fed_forward, 0.2, keys, f"model.layers.{i}.mlp")
    assert torch.equal(actual, layers["lm_head"](layers["model/norm"](hidden)))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), num_sequences=st.integers(1, 6))
def test_cutting_a_batch_into_micro_batches_changes_no_samples_output(data: st.DataObject, num_sequences: int) -> None:
    unique_ids = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=num_sequences, max_size=num_sequences, unique=True)
    ids_B, tokens_BT = torch.tensor(data.draw(unique_ids)), sequences(num_sequences)
    order = torch.tensor(data.draw(st.permutations(range(num_sequences))))
    cuts = data.draw(st.sets(st.integers(1, num_sequences - 1))) if num_sequences > 1 else set()
    decoder = build()

    def run(rows: Tensor) -> Tensor:
        with dropout_of(ids_B[rows], seed=1), torch.no_grad():
            return decoder(tokens_BT[rows])

    whole = run(torch.arange(num_sequences))
    parts = torch.cat([run(rows) for rows in order.tensor_split(sorted(cuts))])
    # Matrix products may round differently in batches of other sizes; one other element dropped would show at once.
    torch.testing.assert_close(parts, whole[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recompute", [Recompute.full, Recompute.selective])
def test_recompute_changes_no_bit_of_loss_and_gradient_and_backward_needs_no_context(recompute: Recompute) -> None:
    tokens_BT = sequences(3)

    def train(how: Recompute) -> tuple[Tensor, dict[str, Tensor]]:
        decoder = build(how)
        with dropout_of(torch.tensor([11, 12, 13]), seed=0):
            loss = summed_cross_entropy(decoder(tokens_BT), tokens_BT)
        # The second forward of recompute must not see the keys of a micro-batch that is on its way by then.
        with dropout_of(torch.tensor([1, 2, 3]), seed=0):
            loss.backward()
        return loss, {name: p.grad for name, p in decoder.canonical_parameters() if p.grad is not None}

    (loss, plain), (loss_again, again) = train(Recompute.none), train(recompute)
    assert torch.equal(loss, loss_again)
    assert plain.keys() == again.keys() != set()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def test_torchs_global_generator_is_neither_read_nor_moved() -> None:
    decoder, tokens_BT = build(Recompute.full), sequences(2)

    def logits() -> Tensor:
        before = torch.get_rng_state()
        with dropout_of(torch.tensor([1, 2]), seed=0):
            result = decoder(tokens_BT)
        result.sum().backward()
        assert torch.equal(torch.get_rng_state(), before)
        return result

    first = logits()
    torch.manual_seed(12345)
    assert torch.equal(logits(), first)


def test_in_evaluation_nothing_is_dropped() -> None:
    dropping, plain, tokens_BT = build().eval(), build(dropout=0.0), sequences(2)
    assert torch.equal(dropping(tokens_BT), plain(tokens_BT))
    with dropout_of(torch.tensor([1, 2]), seed=0):
        assert torch.equal(dropping(tokens_BT), plain(tokens_BT))


def test_training_without_sample_ids_is_an_error_not_a_run_without_dropout() -> None:
    decoder, tokens_BT = build(), sequences(2)
    with pytest.raises(RuntimeError, match=r"model\.layers\.0: dropout in training needs the sample ids"):
        decoder(tokens_BT)
    with dropout_of(torch.tensor([1, 2]), seed=0):
        with pytest.raises(RuntimeError, match="needs the sample ids"), dropout_of(None, seed=0):
            decoder(tokens_BT)
        decoder(tokens_BT)  # an inner context, left by an error, gives the outer one back


def test_ids_of_another_batch_are_an_error() -> None:
    with (
        dropout_of(torch.tensor([1, 2, 3]), seed=0),
        pytest.raises(RuntimeError, match=r"model\.layers\.0\.self_attn: 3 sample ids for 2 sequences"),
    ):
        build()(sequences(2))
