"""What a suite asks of a benchmark is what the model gets; what it comes to stands item by item."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from eval.benchmark_runs import run_benchmarks
from eval.conductor import TokenModel
from eval.requests import Continuation, Prompt
from eval.throughput import Metered
from tests.unit.eval.oracle import OracleLM
from tests.unit.eval.sandbox.available import why_not
from tests.unit.eval.tiny import TinyEngine, make_data, make_lm, make_model
from training.config.eval_schema import BenchmarkConfig, SuiteConfig
from training.errors import DataError


class Listening(OracleLM):
    """An oracle that keeps what it was asked."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__(answers)
        self.asked: list[Instance] = []

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked += requests
        return super().loglikelihood(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.asked += requests
        return super().generate_until(requests)

    @property
    def tokenizer_name(self) -> str:
        return "words"

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "template"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in chat_history)


def run(root: Path, name: str, **how: Any) -> tuple[Listening, Any]:
    lm = Listening(
        {"regex_match": lambda doc: f" {doc['answer']}", "human_eval": lambda doc: doc["canonical_solution"]}
    )
    return lm, run_benchmarks(lm, SuiteConfig(benchmarks={name: BenchmarkConfig(**how)}), root)[name]


def test_solved_examples_stand_before_the_question_and_never_its_own(prepared_benchmarks: Path) -> None:
    lm, result = run(prepared_benchmarks, "cissp", items=4, few_shot=2)
    assert result.metrics == {"cissp/acc": 1.0, "cissp/items": 4.0}
    for request in lm.asked:
        first, second, own = request.args[0].split("Question: ")[1:]
        assert request.doc["question"] in own
        assert request.doc["question"] not in first + second


def test_a_chat_template_is_used_where_the_suite_says_so(prepared_benchmarks: Path) -> None:
    plain, _ = run(prepared_benchmarks, "regex_match", items=2)
    chat, result = run(prepared_benchmarks, "regex_match", items=2, chat=True)
    assert all("<user>" not in request.args[0] for request in plain.asked)
    assert all("<user>" in request.args[0] for request in chat.asked)
    assert result.metrics["regex_match/acc"] == 1.0


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_how_answers_are_drawn_and_how_long_they_may_be_is_passed_on(prepared_benchmarks: Path) -> None:
    lm, result = run(prepared_benchmarks, "human_eval", items=2, tries=3, temperature=0.5, top_p=0.9, max_new_tokens=99)
    assert len(lm.asked) == 6
    for request in lm.asked:
        arguments: tuple[Any, ...] = request.args
        options = arguments[1]
        assert (options["do_sample"], options["temperature"], options["top_p"]) == (True, 0.5, 0.9)
        assert options["max_gen_toks"] == 99
    assert result.metrics["human_eval/pass_hat_3"] == 1.0
    assert [item["scores"]["pass_hat_3"] for item in result.items] == [1.0, 1.0]


def test_items_hold_what_their_metric_is_made_of(prepared_benchmarks: Path) -> None:
    _, result = run(prepared_benchmarks, "bits_per_byte_prose", items=2)
    for item in result.items:
        bits, num_bytes = item["scores"]["bits_per_byte"]
        assert bits == 0.0
        assert num_bytes > 100


def test_what_is_not_prepared_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"python -m eval\.prepare cissp"):
        run(tmp_path, "cissp")


def test_tokens_and_what_they_cost_are_counted() -> None:
    data = make_data(4)
    model: TokenModel = make_lm(TinyEngine(make_model(data.tokenizer.vocab_size)), data)
    metered = Metered(model=model, num_devices=8, price_per_hour=9.0)
    asked = [Continuation(context_ids=[0, 5, 6], continuation_ids=[7, 8])] * 3
    assert metered.score(asked) == model.score(asked)
    new = metered.generate([Prompt(ids=[0, 5], max_new_tokens=4)])
    numbers = metered.numbers()
    assert (numbers["prompt_tokens"], numbers["scored_tokens"]) == (3 * 3 + 2, 6)
    assert numbers["generated_tokens"] == len(new[0])
    tokens = 11 + 6 + len(new[0])
    assert numbers["cost"] == pytest.approx(9.0 * 8 * numbers["model_seconds"] / 3600)
    assert numbers["cost_per_million_tokens"] == pytest.approx(numbers["cost"] / tokens * 1e6)
    assert "cost" not in Metered(model=model, num_devices=1, price_per_hour=None).numbers()
    assert math.isfinite(numbers["tokens_per_second"])
