"""DPO's loss is the formula of its paper, and its gradient the same from whole logits and chunk by chunk."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed.configs import batch_of_pairs
from tests.distributed.reference import loss_of_pairs
from training.config.stage_schema import PREFERENCE_MEASURES, PreferenceConfig
from training.data.batch import MicroBatch
from training.models.axes import Axis
from training.models.learning import LearningPass, learning, logits_or_losses, summed_losses
from training.models.linear_cross_entropy import linear_token_losses
from training.models.loss import IGNORED_LABEL, token_cross_entropy
from training.models.preference import Pairs

VOCABULARY, HIDDEN = 128, 12


def learn(batch: MicroBatch, config: PreferenceConfig, chunk_tokens: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the summed losses of a projection, and the gradients of its input and weight."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*batch.input_ids_BT.shape, HIDDEN, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).requires_grad_()
    assert batch.documents_BT is not None
    assert batch.references_BA is not None
    pairs = Pairs(answers_BT=batch.documents_BT, references_BA=batch.references_BA, config=config, sequence=Axis())
    this = LearningPass(labels_BT=batch.labels_BT, loss_chunk_tokens=chunk_tokens, pairs=pairs)
    with learning(this):
        output = logits_or_losses(hidden, weight)
    losses = summed_losses(output, this)
    this.total(losses).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return losses.detach(), [hidden.grad, weight.grad, (hidden @ weight.t()).detach()]


@pytest.mark.parametrize("chunk_tokens", [10**6, 50])
@pytest.mark.parametrize(
    "config",
    [PreferenceConfig(), PreferenceConfig(beta=0.5, label_smoothing=0.2), PreferenceConfig(beta=0.02, sft_weight=0.3)],
)
def test_the_loss_is_that_of_the_paper_pair_by_pair(config: PreferenceConfig, chunk_tokens: int) -> None:
    batch = batch_of_pairs(3)
    losses, (_, _, logits) = learn(batch, config, chunk_tokens)
    mean, measured = loss_of_pairs(logits, batch, config)
    assert losses[0].item() / batch.num_targets == pytest.approx(mean.item(), rel=1e-5)
    means = dict(zip(PREFERENCE_MEASURES, (losses[1:] / batch.num_targets).tolist(), strict=True))
    assert means == pytest.approx(measured, rel=1e-4, abs=1e-4)


def test_gradients_chunk_by_chunk_are_those_of_whole_logits() -> None:
    config = PreferenceConfig(beta=0.5, label_smoothing=0.1, sft_weight=0.2)
    _, whole = learn(batch_of_pairs(1), config, 10**6)
    _, chunked = learn(batch_of_pairs(1), config, 37)
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_model_that_is_its_own_reference_has_no_margin() -> None:
    batch = batch_of_pairs(0)
    _, (_, _, logits) = learn(batch, PreferenceConfig(), 10**6)
    assert batch.documents_BT is not None
    losses = token_cross_entropy(logits, batch.labels_BT).double()
    sums = torch.zeros(len(losses), 7, dtype=torch.float64).scatter_add(1, batch.documents_BT, -losses)
    assert batch.references_BA is not None
    known = torch.where(batch.references_BA.isnan(), torch.nan, sums[:, :6])
    own = MicroBatch(
        input_ids_BT=batch.input_ids_BT,
        labels_BT=batch.labels_BT,
        documents_BT=batch.documents_BT,
        references_BA=known,
    )
    found, _ = learn(own, PreferenceConfig(), 10**6)
    assert found[0].item() / own.num_targets == pytest.approx(math.log(2.0), rel=1e-5)
    assert found[2:].abs().max() < 1e-3


@settings(deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 19), st.integers(1, 60), st.sampled_from([0.0, 0.4, 1.0]), st.integers(0, 2**20)
)
def test_each_token_s_loss_and_gradient_are_those_of_whole_logits(
    num_sequences: int, num_tokens: int, chunk_tokens: int, ignored_share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_sequences, num_tokens)
    hidden = torch.randn(*shape, HIDDEN, generator=generator)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    labels = torch.randint(0, VOCABULARY, shape, generator=generator)
    labels = labels.masked_fill(torch.rand(shape, generator=generator) < ignored_share, IGNORED_LABEL)
    factors = torch.randn(shape, generator=generator)
    found = []
    for chunked in (False, True):
        inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        losses = (
            linear_token_losses(inputs[0], inputs[1], labels, chunk_tokens=chunk_tokens)
            if chunked
            else token_cross_entropy(inputs[0] @ inputs[1].t(), labels)
        )
        (losses * factors).sum().backward()
        found.append([losses.detach(), *(tensor.grad for tensor in inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
