"""Against answers of real servers, which `recorded` names."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.endpoint.client import AnswerMissing
from eval.endpoint.lm import EndpointLM
from eval.endpoint.logprobs import EchoUnusable
from tests.unit.eval.endpoint.recorded import (
    CONTEXT,
    OPTIONS,
    PROMPTS,
    TEXT,
    ask_everything,
    generations,
    instances,
    lm_of,
    multiple_choice,
)
from tests.unit.eval.endpoint.scripted_server import answer, scripted_server
from training.errors import ConfigError


@pytest.fixture
def chat() -> Iterator[EndpointLM]:
    lm = lm_of("chat")
    yield lm
    lm.close()


@pytest.fixture
def scores() -> Iterator[EndpointLM]:
    lm = lm_of("scores")
    yield lm
    lm.close()


def test_a_chat_model_answers_and_ends_where_the_task_says(chat: EndpointLM) -> None:
    assert chat.generate_until(generations()) == ["1, 2, 3, 4, 5", "The capital of France is Paris."]
    cut = generations()
    for request in cut:
        request.arguments[1]["until"] = ["\n\n"] * 4 + ["3", " Paris"]
    with pytest.raises(AnswerMissing):
        chat.generate_until(cut)  # other stop texts are another question


def test_texts_beyond_the_four_that_the_api_takes_end_an_answer_too(tmp_path: Path) -> None:
    with scripted_server(lambda *_: answer("one two three four five")) as server:
        lm = lm_of("chat", tmp_path / "j.jsonl", base_url=server.url)
        until = ["a", "b", "c", "d", " four"]
        assert lm.generate_until(instances("generate_until", [("p", {"until": until})])) == ["one two three"]
        lm.close()
    assert server.bodies[0]["stop"] == until[:4]


def test_messages_go_to_the_server_as_messages(chat: EndpointLM) -> None:
    prompt = chat.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPTS[1]}]
    )
    (said,) = chat.generate_until(instances("generate_until", [(prompt, {"until": [], "max_gen_toks": 16})]))
    assert said == "The capital of France is Paris."


def test_of_one_prompt_each_sample_is_asked_for_and_greedy_ones_once(tmp_path: Path) -> None:
    with scripted_server(lambda body, _: answer(f"{body['seed']} {body['temperature']}")) as server:
        lm = lm_of("chat", tmp_path / "j.jsonl", base_url=server.url)
        drawn = generations(do_sample=True, temperature=0.8)
        assert lm.generate_until([drawn[0], drawn[0], drawn[1], drawn[0]]) == [
            "1234 0.8",
            "1235 0.8",
            "1234 0.8",
            "1236 0.8",
        ]
        greedy = generations(do_sample=False, temperature=0.8)
        assert lm.generate_until([greedy[0]] * 3) == ["1234 0.0"] * 3
        lm.close()
    assert len(server.bodies) == 5


def test_fields_of_a_provider_are_added_and_left_out(tmp_path: Path) -> None:
    extra = {"extra_body": {"seed": None, "reasoning_effort": "low"}, "max_tokens_field": "max_completion_tokens"}
    with scripted_server(lambda *_: answer("")) as server:
        lm = lm_of("chat", tmp_path / "j.jsonl", base_url=server.url, **extra)
        assert lm.generate_until(instances("generate_until", [("p", {"until": [], "top_p": 0.5})])) == [""]
        lm.close()
    assert server.bodies == [
        {
            "model": ".weights/smollm2_135m",
            "messages": [{"role": "user", "content": "p"}],
            "max_completion_tokens": 256,
            "temperature": 0.0,
            "top_p": 0.5,
            "reasoning_effort": "low",
        }
    ]


def test_a_chat_model_names_a_letter_where_that_is_allowed(chat: EndpointLM) -> None:
    found = chat.loglikelihood(multiple_choice())
    assert [logprob for logprob, _ in found] == [-math.inf, -math.inf, 0.0, -math.inf], "it said: C. Madrid"
    assert [is_greedy for _, is_greedy in found] == [False, False, True, False]
    assert chat.unnamed_choices == 0


def test_options_are_put_into_the_last_message_of_a_conversation(tmp_path: Path) -> None:
    with scripted_server(lambda *_: answer("I do not know")) as server:
        lm = lm_of("chat", tmp_path / "j.jsonl", base_url=server.url)
        prompt = lm.apply_chat_template([{"role": "system", "content": "s"}, {"role": "user", "content": CONTEXT}])
        found = lm.loglikelihood(instances("loglikelihood", [(prompt, o) for o in OPTIONS], one_item=True))
        lm.close()
    first, last = server.bodies[0]["messages"]
    assert first == {"role": "system", "content": "s"}
    assert "\nB. Rome\n" in last["content"]
    assert lm.unnamed_choices == 1
    assert sorted(logprob for logprob, _ in found)[-1] == 0.0


def test_chat_refuses_scores_and_says_what_to_do(tmp_path: Path) -> None:
    lm = lm_of("chat", tmp_path / "j.jsonl", multiple_choice_by_letter=False)
    with pytest.raises(ConfigError, match=r"\n  -> api=completions .* multiple_choice_by_letter=true"):
        lm.loglikelihood(multiple_choice())
    with pytest.raises(ConfigError, match="cannot be had through messages"):
        lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(TEXT,)]))
    lm.close()


def test_what_is_no_question_with_options_is_refused(chat: EndpointLM) -> None:
    pairs = [("one context", " end"), ("another context", " end")]
    with pytest.raises(ConfigError, match="2 options after 2 contexts"):
        chat.loglikelihood(instances("loglikelihood", pairs, one_item=True))


def test_echoed_scores_are_those_the_server_gave(scores: EndpointLM) -> None:
    """By hand from its answers; the one that is greedy is what it generates too."""
    found = scores.loglikelihood(multiple_choice())
    assert [round(logprob, 3) for logprob, _ in found] == [-0.268, -6.767, -6.291, -7.435]
    assert [is_greedy for _, is_greedy in found] == [True, False, False, False]


def test_a_text_without_context_is_scored_after_the_prefix(scores: EndpointLM) -> None:
    """One of its characters is cut into several tokens; the sum of the answer's column, less the generated token's."""
    (rolling,) = scores.loglikelihood_rolling(instances("loglikelihood_rolling", [(TEXT,)]))
    ((alone, _), (word, _)) = scores.loglikelihood(instances("loglikelihood", [("", TEXT), ("The  ", "end")]))
    assert rolling == alone
    (column,) = [
        answered.response["choices"][0]["logprobs"]
        for answered in scores.client.journal.answers.values()
        if answered.response["choices"][0]["text"].startswith("<|endoftext|>The café")
    ]
    assert rolling == pytest.approx(sum(column["token_logprobs"][1:-1]))
    assert column["tokens"][-1] == "\n"
    assert word < -5


def test_scores_of_other_positions_are_found_out() -> None:
    lm = lm_of("shifted")
    with pytest.raises(EchoUnusable, match=r"only 1 of these 8 tokens are the\s+likeliest"):
        lm.loglikelihood(multiple_choice())
    lm.close()


def test_a_server_that_leaves_scores_out_is_refused_with_a_way_out() -> None:
    lm = lm_of("silent")
    with pytest.raises(EchoUnusable, match="without them: it does not score texts\n  -> multiple choice: api=chat"):
        lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(TEXT,)]))
    lm.close()


def test_completions_have_no_chat_template(scores: EndpointLM) -> None:
    with pytest.raises(ConfigError, match="api=chat"):
        scores.apply_chat_template([{"role": "user", "content": "p"}])


@pytest.mark.parametrize("name", ["chat", "scores", "shifted", "silent"])
def test_everything_that_was_recorded_is_replayed(name: str) -> None:
    lm = lm_of(name)
    ask_everything(lm)
    usage = lm.client.usage()
    assert usage.answers == len(lm.client.journal.answers)
    assert usage.uncounted_answers == 0
    lm.close()
