"""Choosing tokens, and scores from scattered logits; whole engines are compared in tests/distributed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.eval.tiny import TinyEngine, make_model
from training.data.batch import IGNORED_LABEL, MicroBatch
from training.engine.base import Sampling
from training.engine.inference import choose
from training.models.inference import KeyValueCache

VOCAB_SIZE = 50


def drawn(logits: torch.Tensor, *, temperature: float, top_p: float, uniform: float) -> int:
    uniform_B = torch.tensor([uniform], dtype=torch.float64)
    return int(choose(logits[None], Sampling(temperature=temperature, top_p=top_p, uniform_B=uniform_B))[0])


def test_the_most_likely_token_is_taken_where_nothing_is_drawn() -> None:
    logits = torch.randn(6, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    assert choose(logits, None).tolist() == logits.argmax(-1).tolist()


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    num_draws = 4000
    uniform_B = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    logits = probabilities.log().expand(num_draws, -1)
    tokens = choose(logits, Sampling(temperature=1.0, top_p=1.0, uniform_B=uniform_B))
    shares = torch.bincount(tokens, minlength=4).double() / num_draws
    torch.testing.assert_close(shares, probabilities, atol=1 / num_draws, rtol=0)


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20),
    temperature=st.floats(0.1, 5),
    top_p=st.floats(0.01, 1.0),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_only_tokens_of_the_nucleus_are_drawn(
    logits: list[float], temperature: float, top_p: float, uniform: float
) -> None:
    values = torch.tensor(logits)
    token = drawn(values, temperature=temperature, top_p=top_p, uniform=uniform)
    p = (values.double() / temperature).softmax(-1)
    assert float(p[p > p[token]].sum()) < top_p + 1e-12  # what is likelier does not fill the nucleus


def test_a_small_nucleus_is_the_most_likely_token() -> None:
    logits = torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    assert drawn(logits, temperature=3.0, top_p=0.001, uniform=0.999) == int(logits.argmax())


@pytest.mark.parametrize("lengths", [[3, 3], [5, 2], [1, 6]])
def test_a_cache_gives_what_the_whole_sequence_gives(lengths: list[int]) -> None:
    engine = TinyEngine(make_model(VOCAB_SIZE))
    ids_BT = torch.randint(0, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(2))
    cache = KeyValueCache(2, 12)
    labels_BT = torch.full((2, max(lengths)), IGNORED_LABEL)
    engine.score(MicroBatch(input_ids_BT=ids_BT[:, : max(lengths)], labels_BT=labels_BT), cache)
    cache.advance(torch.tensor(lengths))
    for row, length in enumerate(lengths):
        rest_T, target_T = ids_BT[row, length:8], ids_BT[row, length + 1 : 9]
        alone = cache.repeated([row, row], 12)
        inputs_BT = torch.stack([rest_T, rest_T])
        scores = engine.score(MicroBatch(input_ids_BT=inputs_BT, labels_BT=torch.stack([target_T, target_T])), alone)
        whole = torch.full((1, 8), IGNORED_LABEL)
        whole[0, length:] = target_T
        expected = engine.score(MicroBatch(input_ids_BT=ids_BT[row : row + 1, :8], labels_BT=whole))
        torch.testing.assert_close(scores.logprob_B, expected.logprob_B.expand(2), atol=1e-4, rtol=0)


def test_a_cache_that_is_too_small_is_a_bug_of_the_caller() -> None:
    engine, cache = TinyEngine(make_model(VOCAB_SIZE)), KeyValueCache(1, 3)
    with pytest.raises(AssertionError, match="4 tokens in a cache of 3"):
        engine.next_tokens(torch.zeros((1, 4), dtype=torch.int64), torch.tensor([4]), cache)
