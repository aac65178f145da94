"""Attention stays within documents, exactly, and without memory that grows with the square of the sequence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.models.configs import KINDS, LLAMA3_SCALING, model
from tests.unit.models.live_bytes import LiveBytes
from training.config.model_schema import LatentAttentionConfig, ModelConfig
from training.config.schema import Recompute
from training.models.attend import attend
from training.models.decoder import Decoder, decoder_layers
from training.models.documents import Documents
from training.models.learning import LearningPass, learning, summed_losses
from training.models.loss import summed_cross_entropy

MODELS = {name: KINDS[name] for name in ("grouped queries", "one head per query", "llama3 rope")} | {
    "latent": model(
        latent_attention=LatentAttentionConfig(kv_rank=16, head_size=8, rope_head_size=4, value_head_size=6)
    )
}
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def numbered(*rows: list[int]) -> Tensor:
    """Return the documents of sequences, padded with one more document to the longest."""
    longest = max(map(sum, rows))
    padded = [[*row, longest - sum(row)] for row in rows]
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in padded])


def masked_attention(q: Tensor, k: Tensor, v: Tensor, documents_BT: Tensor) -> Tensor:
    """Return attention by its definition, with a whole mask, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    T = q.shape[2]
    sees_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    sees_BTT = sees_BTT & torch.ones(T, T, dtype=torch.bool).tril()
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~sees_BTT[:, None], -torch.inf)
    return scores.softmax(-1) @ v


@settings(deadline=None)
@given(rows=st.lists(lengths, min_size=1, max_size=3), value_size=st.sampled_from([8, 5]), seed=st.integers(0, 2**20))
def test_a_query_sees_earlier_tokens_of_its_own_document_alone(
    rows: list[list[int]], value_size: int, seed: int
) -> None:
    documents_BT = numbered(*rows)
    B, T = documents_BT.shape
    torch.manual_seed(seed)
    q, k = torch.randn(B, 4, T, 8), torch.randn(B, 2, T, 8)
    tensors = (q.requires_grad_(), k.requires_grad_(), torch.randn(B, 2, T, value_size, requires_grad=True))
    mixed = attend(*tensors, documents=Documents(documents_BT))
    expected = masked_attention(*tensors, documents_BT)
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn(expected.shape)
    for found, exact in zip(
        torch.autograd.grad(mixed, tensors, gradient),
        torch.autograd.grad(expected, tensors, gradient.double()),
        strict=True,
    ):
        torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-5)


@given(rows=st.lists(lengths, min_size=1, max_size=3), offset=st.integers(-5, 5))
def test_documents_are_runs_of_equal_numbers_whatever_the_numbers(rows: list[list[int]], offset: int) -> None:
    documents_BT = numbered(*rows)
    found = Documents(documents_BT % 2 + offset)
    expected = [[int((row_T == n).sum()) for n in row_T.unique()] for row_T in documents_BT]
    assert [list(row) for row in found.lengths] == expected
    assert found.num_tokens == documents_BT.shape[1]
    rises_BT = found.numbers_BT.diff(dim=1)
    assert torch.equal(rises_BT, (documents_BT.diff(dim=1) != 0).int())


def losses_of(decoder: Decoder, ids_BT: Tensor, labels_BT: Tensor, documents: Documents | None) -> Tensor:
    """Return the summed loss as an engine makes it."""
    this = LearningPass(labels_BT=labels_BT, loss_chunk_tokens=1_000_000, documents=documents)
    with learning(this):
        output = decoder(ids_BT)
    return summed_losses(output, this)[0]


@pytest.mark.parametrize("kind", MODELS)
def test_packed_documents_are_learned_as_each_alone(kind: str) -> None:
    config, row = MODELS[kind], [5, 1, 11, 3]
    torch.manual_seed(0)
    ids_BT = torch.randint(0, config.vocab_size, (1, sum(row)))
    labels_BT = torch.randint(0, config.vocab_size, (1, sum(row)))
    packed, alone = (Decoder(decoder_layers(config, seed=0)) for _ in range(2))
    losses_of(packed, ids_BT, labels_BT, Documents(numbered(row)[:, : sum(row)])).backward()
    for ids, labels in zip(ids_BT.split(row, dim=1), labels_BT.split(row, dim=1), strict=True):
        summed_cross_entropy(alone(ids), labels).backward()  # of its own positions, from 0 on
    with torch.no_grad():
        whole = losses_of(packed, ids_BT, labels_BT, Documents(numbered(row)[:, : sum(row)]))
        each = [
            summed_cross_entropy(alone(ids), labels)
            for ids, labels in zip(ids_BT.split(row, dim=1), labels_BT.split(row, dim=1), strict=True)
        ]
        torch.testing.assert_close(whole, torch.stack(each).sum(), rtol=1e-5, atol=0)
    for (name, one), (_, other) in zip(packed.canonical_parameters(), alone.canonical_parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5 * float(other.grad.abs().max()), msg=name)


@pytest.mark.parametrize("recompute", [Recompute.full, Recompute.selective])
def test_recompute_keeps_to_the_documents_of_its_own_micro_batch(recompute: Recompute) -> None:
    config = model(rope_scaling=LLAMA3_SCALING)
    torch.manual_seed(1)
    ids_BT = torch.randint(0, config.vocab_size, (2, 12))
    mine, others = Documents(numbered([4, 8], [7, 5])), Documents.whole(2, 12)

    def gradients(how: Recompute) -> list[Tensor]:
        decoder = Decoder(decoder_layers(config, seed=0, recompute=how))
        loss = losses_of(decoder, ids_BT, ids_BT, mine)
        # Backward's second forward must not see the documents of a micro-batch that is on its way by then.
        with learning(LearningPass(labels_BT=ids_BT, loss_chunk_tokens=1, documents=others)):
            loss.backward()
        return [p.grad for p in decoder.parameters() if p.grad is not None]

    for plain, again in zip(gradients(Recompute.none), gradients(recompute), strict=True):
        assert torch.equal(plain, again)


def test_8192_tokens_in_documents_make_no_matrix_of_tokens_by_tokens() -> None:
    config: ModelConfig = model(hidden_size=24, num_heads=2, num_kv_heads=1, ffn_size=16, max_sequence_length=8192)
    num_tokens = 8192
    decoder = Decoder(decoder_layers(config, seed=0))
    ids_BT = torch.randint(0, config.vocab_size, (1, num_tokens))
    documents = Documents(numbered([3000, 1, 191, 5000]))
    with LiveBytes(ignored=list(decoder.parameters())) as live:
        losses_of(decoder, ids_BT, ids_BT, documents).backward()
    assert live.highest < num_tokens * num_tokens  # one byte for each pair: less than any mask, let alone scores
