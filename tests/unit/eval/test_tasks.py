import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from eval.data import data_identity
from eval.lm import EngineLM
from eval.requests import Continuation, Prompt, ScoredContinuation
from eval.tasks.held_out import HELD_OUT
from eval.tasks.multiple_choice import CONTEXT_TOKENS, CONTINUATION_TOKENS, MULTIPLE_CHOICE, make_questions
from eval.tasks.samples import SAMPLES
from tests.unit.eval.tiny import SENTENCES, Data, Document, TinyEngine, make_data, make_lm, make_model
from training.config.eval_schema import SuiteConfig
from training.errors import DataError
from training.models.decoder import Decoder

DATA = make_data()


SUITE = SuiteConfig(held_out_source="prose", held_out_documents=7, document_tokens=50, batch_sequences=3)


def suite(**changes: Any) -> SuiteConfig:
    return replace(SUITE, **changes)


def lm_of(model: Decoder) -> EngineLM:
    return make_lm(TinyEngine(model), DATA, batch_sequences=3)


def test_held_out_bits_per_byte_equal_a_direct_loop_over_documents() -> None:
    model = make_model(DATA.tokenizer.vocab_size)
    total_bits, total_bytes = 0.0, 0
    with torch.no_grad():
        result = HELD_OUT.run(lm_of(model), DATA, suite())
        for document in DATA.documents[:7]:
            ids = document.token_ids[:50].tolist()
            log_probs_TV = model(torch.tensor([[DATA.tokenizer.eos_id, *ids[:-1]]])).log_softmax(-1)[0]
            total_bits -= sum(log_probs_TV[t, token].item() for t, token in enumerate(ids)) / math.log(2)
            total_bytes += len(DATA.tokenizer.decode(ids).encode())
    assert result.metrics["bits_per_byte"] == pytest.approx(total_bits / total_bytes, rel=1e-6)
    assert result.metrics["bits_per_byte_low"] < result.metrics["bits_per_byte"] < result.metrics["bits_per_byte_high"]
    assert [item["id"] for item in result.items] == [f"doc-{i}" for i in range(7)]


def test_a_uniform_model_needs_log2_of_the_vocabulary_per_token() -> None:
    model = make_model(DATA.tokenizer.vocab_size)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        result = HELD_OUT.run(lm_of(model), DATA, suite())
    bits_per_token = math.log2(DATA.tokenizer.vocab_size)
    for item in result.items:
        assert item["bits"] == pytest.approx(item["num_tokens"] * bits_per_token)
    assert result.metrics["held_out_nats_per_token"] == pytest.approx(math.log(DATA.tokenizer.vocab_size))


def test_held_out_bytes_of_whole_documents_are_the_bytes_of_their_text() -> None:
    text = "naïve — ☃ and the wind"
    document = Document(id="one", token_ids=np.array(DATA.tokenizer.encode(text), dtype="<u2"))
    data = Data(tokenizer=DATA.tokenizer, documents=[document])
    with torch.no_grad():
        result = HELD_OUT.run(lm_of(make_model(DATA.tokenizer.vocab_size)), data, suite())
    assert result.metrics["held_out_bytes"] == len(text.encode())


def test_a_source_without_held_out_text_is_refused_with_a_remedy() -> None:
    empty = Data(tokenizer=DATA.tokenizer, documents=[Document(id="empty", token_ids=np.zeros(0, dtype="<u2"))])
    with pytest.raises(DataError, match="held_out_fraction"):
        HELD_OUT.run(lm_of(make_model(DATA.tokenizer.vocab_size)), empty, suite())


def test_questions_hold_the_real_continuation_at_the_right_place_and_four_different_choices() -> None:
    questions = make_questions(DATA.documents, 20)
    by_id = {document.id: document.token_ids.tolist() for document in DATA.documents}
    assert len(questions) == 20
    assert len({question.id for question in questions}) == 20
    for question in questions:
        document_id, start = question.id.split("@")
        window = by_id[document_id][int(start) : int(start) + CONTEXT_TOKENS + CONTINUATION_TOKENS]
        assert question.context_ids + question.choices_ids[question.right] == window
        assert len({tuple(choice) for choice in question.choices_ids}) == 4
        assert {len(choice) for choice in question.choices_ids} == {CONTINUATION_TOKENS}
    assert {question.right for question in questions} == {0, 1, 2, 3}
    assert make_questions(DATA.documents, 20) == questions
    assert make_questions(DATA.documents, 5) == questions[:5]


def test_documents_that_all_say_the_same_give_no_question() -> None:
    same = [Document(id=str(i), token_ids=DATA.documents[0].token_ids) for i in range(6)]
    assert make_questions(same, 10) == []


@dataclass
class KnowsTheText:
    """Finds a continuation certain if it follows its context in a document, and impossible otherwise."""

    documents: list[list[int]]
    certain_logprob: float = 0.0

    def score(self, continuations: Sequence[Continuation]) -> list[ScoredContinuation]:
        texts = [[*one.context_ids[1:], *one.continuation_ids] for one in continuations]
        known = [any(self._begins(row, ids) for row in self.documents) for ids in texts]
        return [
            ScoredContinuation(logprob=self.certain_logprob if is_known else -math.inf, is_greedy=is_known)
            for is_known in known
        ]

    def generate(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        raise AssertionError("nobody asks for text")

    @staticmethod
    def _begins(row: list[int], ids: list[int]) -> bool:
        return any(row[i : i + len(ids)] == ids for i in range(0, len(row), len(ids)))


def test_a_model_that_knows_the_text_answers_every_question_and_one_that_says_nan_answers_none() -> None:
    documents = [document.token_ids.tolist() for document in DATA.documents]
    for certain_logprob, expected in [(0.0, 1.0), (-math.inf, 0.0), (math.nan, 0.0)]:
        model = KnowsTheText(documents, certain_logprob)
        metrics = MULTIPLE_CHOICE.run(model, DATA, suite(held_out_documents=9, multiple_choice_items=12)).metrics
        assert metrics["multiple_choice_accuracy"] == expected
        assert metrics["multiple_choice_chance"] == 0.25
        assert metrics["multiple_choice_items"] == 12


def test_an_answer_is_right_exactly_if_a_direct_loop_finds_the_real_continuation_most_likely() -> None:
    model = make_model(DATA.tokenizer.vocab_size)
    questions = make_questions(DATA.documents[:7], 12)
    with torch.no_grad():
        result = MULTIPLE_CHOICE.run(lm_of(model), DATA, suite(multiple_choice_items=12))
        for question, item in zip(questions, result.items, strict=True):
            direct = []
            for choice in question.choices_ids:
                ids = torch.tensor([DATA.tokenizer.eos_id, *question.context_ids, *choice])
                log_probs_TV = model(ids[None, :-1]).log_softmax(-1)[0, CONTEXT_TOKENS:]
                direct.append(log_probs_TV.gather(-1, ids[1 + CONTEXT_TOKENS :, None]).sum().item())
            assert item["logprobs"] == pytest.approx(direct, rel=1e-5)
            assert item["correct"] == (int(np.argmax(direct)) == question.right)
    assert 0 < result.metrics["multiple_choice_accuracy"] < 1


def test_too_little_text_for_questions_is_refused_with_a_remedy() -> None:
    with pytest.raises(DataError, match="multiple_choice_items: 0"):
        MULTIPLE_CHOICE.run(
            lm_of(make_model(DATA.tokenizer.vocab_size)), DATA, suite(held_out_documents=3, multiple_choice_items=4)
        )


def test_samples_show_each_prompt_with_its_own_continuation() -> None:
    model = make_model(DATA.tokenizer.vocab_size)
    prompts = [SENTENCES[0][:20], "The wind"]
    with torch.no_grad():
        result = SAMPLES.run(lm_of(model), DATA, suite(prompts=prompts, sample_tokens=5))
        ids = [DATA.tokenizer.eos_id, *DATA.tokenizer.encode("The wind")]
        [alone] = lm_of(model).generate([Prompt(ids=ids, max_new_tokens=5)])
    assert [item["prompt"] for item in result.items] == prompts
    assert result.items[1]["text"] == DATA.tokenizer.decode(alone)
    assert result.metrics == {}


def test_the_data_identity_changes_with_text_and_tokenizer_and_number_of_documents() -> None:
    changed = Data(tokenizer=DATA.tokenizer, documents=[*DATA.documents[:6], DATA.documents[8]])
    identities = [
        data_identity(DATA, suite()),
        data_identity(changed, suite()),
        data_identity(DATA, suite(held_out_documents=6)),
    ]
    assert len(set(identities)) == 3
    assert data_identity(make_data(), suite()) == identities[0]
