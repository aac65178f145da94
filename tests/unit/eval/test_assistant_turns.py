"""Loss on what the assistant says, and answers to conversations in a run's own tokens and chat template."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmark_runs import run_benchmarks
from eval.contamination import held_out_passages
from eval.evidence import decide_from_reports, read_items
from eval.harness import Subject, measure, with_more_items, write_report
from eval.live_model import LiveModel
from eval.lm import EngineLM
from eval.requests import Continuation, Prompt, ScoredContinuation
from eval.tasks.assistant_turns import ASSISTANT_TURNS, turns
from eval.text_tokenizers import RunTokenizer
from eval.workflows.trajectories import single_turn_trajectories
from tests.unit.eval.tiny import TinyEngine, make_model
from training.config.eval_schema import BenchmarkConfig, SuiteConfig
from training.config.gate_schema import GateAction, GateCondition, GateConfig, Metric
from training.data.chat import CHATML_TOKENS, ChatTemplate, EncodedConversation
from training.data.tokenizer import Tokenizer, train_tokenizer
from training.errors import DataError

TALKS = [
    [("user", "How many sheep?"), ("assistant", "Seven.")],
    [("user", "Who came?"), ("assistant", "Merchants."), ("user", "From where?"), ("assistant", "From the east.")],
    [("system", "Be short."), ("user", "Open the gate."), ("assistant", "Open.")],
] * 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """A held-out conversation."""

    id: str
    token_ids: np.ndarray
    is_target: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Talks:
    """Held-out conversations of one source, "talks", in the tokens of a byte-level tokenizer with ChatML."""

    tokenizer: Tokenizer
    chat: ChatTemplate
    talks: list[Talk]

    def held_out_documents(self, source_name: str) -> list[Talk]:
        assert source_name == "talks"
        return self.talks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Talks:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(directory, [text for talk in TALKS for _, text in talk], 280, special_tokens=CHATML_TOKENS)
    chat = ChatTemplate.load(directory)
    talks = []
    for number, talk in enumerate(TALKS):
        encoded = encode(chat, talk)
        talks.append(
            Talk(id=f"talk-{number}", token_ids=np.array(encoded.token_ids), is_target=np.array(encoded.is_target))
        )
    return Talks(tokenizer=Tokenizer.load(directory), chat=chat, talks=talks)


def encode(chat: ChatTemplate, talk: Sequence[tuple[str, str]]) -> EncodedConversation:
    return chat.encode_conversation({"messages": [{"role": role, "content": text} for role, text in talk]})


SUITE = SuiteConfig(conversation_source="talks", held_out_conversations=9, document_tokens=120, batch_sequences=3)


def lm_of(data: Talks, engine: TinyEngine) -> EngineLM:
    speller = RunTokenizer(data.tokenizer, data.chat)
    return EngineLM(engine=engine, speller=speller, eos_id=data.tokenizer.eos_id, batch_sequences=3)


def engine_of(data: Talks) -> TinyEngine:
    return TinyEngine(make_model(data.tokenizer.vocab_size))


def test_the_loss_is_that_of_a_direct_loop_over_the_targets(data: Talks) -> None:
    engine = engine_of(data)
    nats, num_tokens = 0.0, 0
    with torch.no_grad():
        result = ASSISTANT_TURNS.run(lm_of(data, engine), data, SUITE)
        for talk in data.talks[:9]:
            ids, is_target = talk.token_ids[:120], talk.is_target[:120]
            log_probs_TV = engine.model(torch.from_numpy(ids)[None]).log_softmax(-1)[0]
            for place in np.flatnonzero(is_target):
                nats -= log_probs_TV[place - 1, ids[place]].item()
            num_tokens += int(is_target.sum())
    found = result.metrics
    assert found[Metric.assistant_nats_per_token] == pytest.approx(nats / num_tokens, rel=1e-5)
    assert found["assistant_tokens"] == num_tokens
    low, high = found["assistant_nats_per_token_low"], found["assistant_nats_per_token_high"]
    assert low < found[Metric.assistant_nats_per_token] < high
    assert [item["num_turns"] for item in result.items] == [1, 2, 1] * 3


def test_it_counts_the_beginning_alone_and_says_where_nothing_is_left(data: Talks) -> None:
    whole = int(data.talks[1].is_target.sum())
    cut = ASSISTANT_TURNS.run(lm_of(data, engine_of(data)), data, replace(SUITE, document_tokens=60))
    assert 0 < cut.items[1]["num_tokens"] < whole
    with pytest.raises(DataError, match=r"in none of them the assistant\s+says something within 3 tokens"):
        ASSISTANT_TURNS.run(lm_of(data, engine_of(data)), data, replace(SUITE, document_tokens=3))


@given(st.lists(st.booleans(), min_size=1))
def test_turns_are_the_runs_of_targets(is_target: list[bool]) -> None:
    found = list(turns(np.array(is_target)))
    inside = {place for start, end in found for place in range(start, end)}
    assert inside == {place for place, target in enumerate(is_target) if target and place > 0}
    assert all(end < start for (_, end), (start, _) in pairwise(found))


def test_a_gate_goes_by_it_item_by_item(data: Talks, tmp_path: Path) -> None:
    tokenizer = RunTokenizer(data.tokenizer, data.chat)
    for name, suite in (("before", SUITE), ("after", with_more_items(replace(SUITE, held_out_conversations=6), 2))):
        lm = lm_of(data, engine_of(data))
        live = LiveModel(lm, tokenizer, prefix_id=tokenizer.eos_id, max_length=400)
        report = measure(lm, live, Subject(data=data, prepared_root=tmp_path), suite, suite_name="talks")
        assert report.data_identity
        write_report(report, tmp_path / f"{name}.json")
    items = read_items(tmp_path / "after.json")[Metric.assistant_nats_per_token]
    assert len(items.numerators) == 12
    assert not items.higher_is_better
    condition = GateCondition(metric=Metric.assistant_nats_per_token, compared_with="previous", margin=1e-4)
    gate = GateConfig(conditions={"no_worse": condition})
    decision = decide_from_reports(gate, tmp_path / "after.json", {"previous": tmp_path / "before.json"}, look=1)
    assert decision.decision is GateAction.promote
    (finding,) = decision.findings
    assert finding.bounds is not None
    assert (finding.bounds.num_items, finding.bounds.value) == (9, pytest.approx(0.0, abs=1e-5))


def test_what_the_assistant_says_is_looked_for_in_the_training_data(data: Talks) -> None:
    (found,) = held_out_passages(data, SUITE).values()
    assert found["talk-0"] == ["Seven."]
    assert found["talk-1"] == ["Merchants.", "From the east."]
    cut = held_out_passages(data, replace(SUITE, document_tokens=60))["assistant_turns"]["talk-1"]
    assert 0 < len("".join(cut)) < len("".join(found["talk-1"]))


class Answering:
    """A model over tokens that has an answer to the very prompts of some records, and none to others."""

    def __init__(self, records: Iterable[EncodedConversation]) -> None:
        self._answers: dict[tuple[int, ...], list[int]] = {}
        for record in records:
            start = record.is_target.index(True)
            end = start + sum(record.is_target)
            self._answers[tuple(record.token_ids[:start])] = record.token_ids[start:end]
        self.stops: list[tuple[str, ...]] = []

    def score(self, continuations: Sequence[Continuation]) -> list[ScoredContinuation]:
        raise AssertionError("nothing is scored")

    def generate(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        self.stops += [prompt.stop for prompt in prompts]
        return [self._answers[tuple(prompt.ids)] for prompt in prompts]


def test_prompts_are_those_of_training_and_an_answer_ends_with_the_turn(
    prepared_benchmarks: Path, smollm2: Path
) -> None:
    chat = ChatTemplate.load(smollm2)
    tokenizer = RunTokenizer(Tokenizer.load(smollm2), chat)
    held_out = single_turn_trajectories(prepared_benchmarks, fraction=0.2, compact=True).held_out_conversations
    encoded = {record["id"].split("/")[1]: chat.encode_conversation(record) for record in held_out}
    model = Answering(encoded.values())
    live = LiveModel(model, tokenizer, prefix_id=0, max_length=2048)
    how = BenchmarkConfig(chat=True, compact=True, held_out_fraction=0.2, items=12, max_new_tokens=100)
    names = ("bfcl_simple", "bfcl_multiple", "bfcl_parallel")
    found = run_benchmarks(live, SuiteConfig(benchmarks=dict.fromkeys(names, how)), prepared_benchmarks)
    for name in names:
        # Every prompt was, token for token, that of a held-out training record: else the model has no answer.
        assert found[name].metrics == {f"{name}/acc": 1.0, f"{name}/parsed": 1.0, f"{name}/items": 12.0}
        assert {item["id"] for item in found[name].items} <= set(encoded)
    assert all("<|im_end|>" in stops for stops in model.stops)
