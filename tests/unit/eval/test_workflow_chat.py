import math
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from eval.workflows.chat import LMChat, Message
from tests.unit.eval.oracle import WrongLM

CONVERSATION: list[Message] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "[ls()]"},
    {"role": "tool", "content": "a, b"},
]


class RecordingLM(WrongLM):
    """Answers as WrongLM and keeps what it was asked."""

    asked: list[Any]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.asked = [request.args for request in requests]
        return [f" {number}\n" for number, _ in enumerate(requests)]


class TemplatedLM(RecordingLM):
    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return "…"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        messages = "".join(f"<{message['role']}>{message['content']}" for message in chat_history)
        return messages + "<assistant>" * add_generation_prompt


def chat(lm: LM, *, temperature: float = 0.0, **options: Any) -> list[str]:
    return LMChat(lm, **options).chat(
        [CONVERSATION, CONVERSATION[:2]], max_new_tokens=7, temperature=temperature, seeds=[3, 4]
    )


def test_without_a_template_messages_are_plain_text() -> None:
    lm = RecordingLM()
    assert chat(lm) == ["0", "1"]
    (text, options), (shorter, _) = lm.asked
    assert text == "System: Be short.\n\nUser: Hello\n\nAssistant: [ls()]\n\nTool: a, b\n\nAssistant:"
    assert shorter == "System: Be short.\n\nUser: Hello\n\nAssistant:"
    assert "\n\nUser:" in options.pop("until")
    assert options == {"max_gen_toks": 7, "do_sample": False, "temperature": 0.0}


def test_a_models_own_template_is_used_if_it_has_one() -> None:
    lm = TemplatedLM()
    chat(lm)
    assert lm.asked[1] == ("<system>Be short.<user>Hello<assistant>", lm.asked[1][1])
    assert lm.asked[1][1]["until"] == []


def test_whoever_knows_better_decides_about_the_template() -> None:
    lm = TemplatedLM()
    chat(lm, templated=False)
    assert lm.asked[1][0].startswith("System: ")


def test_each_conversation_has_its_seed_where_something_is_drawn() -> None:
    lm = RecordingLM()
    chat(lm, temperature=0.5)
    assert [options["seed"] for _, options in lm.asked] == [3, 4]
    assert all(options["do_sample"] and math.isclose(options["temperature"], 0.5) for _, options in lm.asked)


def test_a_seed_is_asked_for_every_conversation() -> None:
    with pytest.raises(ValueError, match="zip"):
        LMChat(RecordingLM()).chat([CONVERSATION], max_new_tokens=1, temperature=0.0, seeds=[])
