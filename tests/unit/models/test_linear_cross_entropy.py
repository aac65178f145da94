"""The loss chunk by chunk is the loss from whole logits, gradients too, in a fraction of the memory."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.models.configs import model
from tests.unit.models.live_bytes import LiveBytes
from training.config.model_schema import ModelConfig
from training.models.decoder import Decoder, decoder_layers
from training.models.layers import OutputProjection
from training.models.learning import LearningPass, learning, summed_losses
from training.models.linear_cross_entropy import linear_cross_entropy
from training.models.loss import IGNORED_LABEL, summed_cross_entropy

VOCABULARY, HIDDEN = 67, 12
UNCHUNKED = 1_000_000


def problem(
    num_sequences: int, num_tokens: int, ignored_share: float, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden_BTD = torch.randn(num_sequences, num_tokens, HIDDEN, generator=generator).to(dtype)
    weight_VD = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype)
    labels_BT = torch.randint(0, VOCABULARY, (num_sequences, num_tokens), generator=generator)
    ignored_BT = torch.rand(num_sequences, num_tokens, generator=generator) < ignored_share
    return hidden_BTD, weight_VD, labels_BT.masked_fill(ignored_BT, IGNORED_LABEL)


def learned(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_tokens: int | None, scale: float) -> list[Tensor]:
    """Return loss and both gradients; None is the plain way, from whole logits."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    if chunk_tokens is None:
        loss = summed_cross_entropy(hidden @ weight.t(), labels)
    else:
        loss = linear_cross_entropy(hidden, weight, labels, chunk_tokens=chunk_tokens)
    (loss * scale).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [loss.detach(), hidden.grad, weight.grad]


@settings(deadline=None)
@given(
    num_sequences=st.integers(1, 3),
    num_tokens=st.integers(1, 19),
    chunk_tokens=st.integers(1, 60),
    ignored_share=st.sampled_from([0.0, 0.4, 1.0]),
    scale=st.sampled_from([1.0, 0.037, -20.0]),
    seed=st.integers(0, 2**20),
)
def test_loss_and_gradients_are_those_of_whole_logits_for_any_chunk(
    num_sequences: int, num_tokens: int, chunk_tokens: int, ignored_share: float, scale: float, seed: int
) -> None:
    tensors = problem(num_sequences, num_tokens, ignored_share, seed)
    chunked, whole = learned(*tensors, chunk_tokens, scale), learned(*tensors, None, scale)
    for found, expected in zip(chunked, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_in_bf16_the_loss_is_fp32_and_gradients_are_as_good_as_those_of_whole_logits() -> None:
    hidden, weight, labels = tensors = problem(4, 512, 0.1, seed=0, dtype=torch.bfloat16)
    exact = learned(hidden.double(), weight.double(), labels, None, 0.01)

    def errors(found: list[Tensor]) -> list[float]:
        return [float((one.double() - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True)]

    chunked, whole = learned(*tensors, 16, 0.01), learned(*tensors, None, 0.01)
    assert chunked[0].dtype == torch.float32
    assert [x.dtype for x in chunked[1:]] == [torch.bfloat16] * 2
    # Of the loss, fp32 logits are not rounded to bf16 as whole ones are; of gradients, each is rounded once more.
    assert errors(chunked)[0] < 1e-4
    for one, other in zip(errors(chunked)[1:], errors(whole)[1:], strict=True):
        assert one < 1.5 * other


def test_a_frozen_projection_gets_no_gradient_and_the_hidden_states_the_same() -> None:
    hidden, weight, labels = problem(2, 9, 0.2, seed=1)
    expected = learned(hidden, weight, labels, 5, 1.0)
    hidden = hidden.requires_grad_()
    linear_cross_entropy(hidden, weight, labels, chunk_tokens=5).backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, expected[1])


def test_logits_far_from_zero_overflow_nothing() -> None:
    hidden, weight, labels = problem(1, 8, 0.0, seed=2)
    hidden, weight = hidden * 1e3, weight * 1e3
    chunked, whole = learned(hidden, weight, labels, 3, 1.0), learned(hidden, weight, labels, None, 1.0)
    for found, expected in zip(chunked, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_a_nan_in_one_hidden_state_reaches_loss_and_gradients() -> None:
    hidden, weight, labels = problem(1, 8, 0.0, seed=3)
    hidden[0, 6, 0] = float("nan")
    assert all(not x.isfinite().all() for x in learned(hidden, weight, labels, 3, 1.0))


def test_16k_tokens_of_a_32k_vocabulary_take_less_than_a_tenth_of_what_whole_logits_take() -> None:
    num_tokens, vocab_size = 16_384, 32_768
    config = model(vocab_size=vocab_size, hidden_size=24)
    head = OutputProjection(config)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(1, num_tokens, 24, requires_grad=True)
    labels = torch.randint(0, vocab_size, (1, num_tokens))
    with LiveBytes(ignored=[hidden, labels, head.weight]) as live:
        this = LearningPass(labels_BT=labels, loss_chunk_tokens=512)
        with learning(this):
            output = head(hidden)
        summed_losses(output, this)[0].backward()
    whole_bytes = num_tokens * vocab_size * 4  # the fp32 logits alone
    assert live.highest < whole_bytes / 10


KINDS = {"untied": model(), "tied": model(tied_embeddings=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_learns_the_same_from_either(kind: str) -> None:
    config = KINDS[kind]
    ids_BT = torch.randint(0, config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(4))
    labels_BT = ids_BT.roll(-1, dims=1)
    labels_BT[:, -1] = IGNORED_LABEL
    plain, unchunked, chunked = (
        list(gradients_of(config, ids_BT, labels_BT, at_once)) for at_once in (None, UNCHUNKED, 7)
    )
    for expected, same, found in zip(plain, unchunked, chunked, strict=True):
        assert torch.equal(expected, same)  # few tokens: bit by bit what was without
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def gradients_of(config: ModelConfig, ids_BT: Tensor, labels_BT: Tensor, at_once: int | None) -> Iterator[Tensor]:
    decoder = Decoder(decoder_layers(config, seed=0))
    if at_once is None:
        loss = summed_cross_entropy(decoder(ids_BT), labels_BT)
    else:
        this = LearningPass(labels_BT=labels_BT, loss_chunk_tokens=at_once)
        with learning(this):
            output = decoder(ids_BT)
        assert (output.dim() == 1) == (ids_BT.numel() > at_once)
        loss = summed_losses(output, this)[0]
    loss.backward()
    yield loss.detach()
    for parameter in decoder.parameters():
        assert parameter.grad is not None
        yield parameter.grad
