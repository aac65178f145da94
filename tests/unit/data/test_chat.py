"""What a model is to say is exactly what is marked, and tokenised as it will be at inference."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from eval.function_calls import parse_calls
from tests.real_weights import SMOLLM2
from training.data.chat import CHATML, CHATML_TOKENS, ChatTemplate, EncodedConversation
from training.data.messages import BadRecord
from training.errors import ConfigError, DataError

SMOL = ChatTemplate.load(SMOLLM2)
SPLITTER = tokenizers.Tokenizer.from_file(str(SMOLLM2 / "tokenizer.json"))
END = SPLITTER.token_to_id("<|im_end|>")
TOOL = {
    "type": "function",
    "function": {
        "name": "files.move",
        "description": "Move a file.",
        "parameters": {"type": "object", "properties": {"source": {"type": "string"}}, "required": ["source"]},
    },
}
WORKFLOW: dict[str, Any] = {
    "id": "workflow",
    "tools": [TOOL],
    "messages": [
        {"role": "system", "content": "Do all that is asked."},
        {"role": "user", "content": "Move a.txt, then b.txt."},
        {"role": "assistant", "tool_calls": [{"function": {"name": "files.move", "arguments": {"source": "a.txt"}}}]},
        {"role": "tool", "content": '{"moved": "a.txt"}'},
        {"role": "assistant", "tool_calls": [{"function": {"name": "files.move", "arguments": '{"source": "b.txt"}'}}]},
        {"role": "tool", "content": '{"moved": "b.txt"}'},
        {"role": "assistant", "content": "Both are moved."},
        {"role": "user", "content": "Merci, ça marche… 謝謝 🙂\n\n"},
        {"role": "assistant", "content": "  De rien 🙂\n\n- a.txt\n- b.txt\n"},
    ],
}


def byte_level(*special: str) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def turns(encoded: EncodedConversation) -> list[list[int]]:
    """Return the runs of targets."""
    found: list[list[int]] = []
    for (_, was), (token, now) in pairwise([(0, False), *zip(encoded.token_ids, encoded.is_target, strict=True)]):
        if now:
            found += [] if was else [[]]
            found[-1].append(token)
    return found


def tokens_of(text: str) -> list[int]:
    return SPLITTER.encode(text, add_special_tokens=False).ids


def assert_it_is_what_inference_sees(
    messages: list[dict[str, Any]], encoded: EncodedConversation, **options: Any
) -> None:
    """Check each turn: the tokens of the prompt alone, then its targets, are the beginning of the whole."""
    said = turns(encoded)
    places = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(said) == len(places)
    for place, targets in zip(places, said, strict=True):
        prompt = tokens_of(SMOL.render(messages[:place], add_generation_prompt=True, **options))
        assert encoded.token_ids[: len(prompt) + len(targets)] == [*prompt, *targets]
        assert targets == [*tokens_of(messages[place]["content"]), END]
        if messages[place]["content"][:1].isspace():
            return  # what was said is read again in one piece: its white space may be one token with the line end


def said_in(encoded: EncodedConversation) -> list[str]:
    return [SPLITTER.decode(turn[:-1], skip_special_tokens=False) for turn in turns(encoded)]


def test_prompt_and_targets_of_each_turn_are_the_tokens_of_the_whole() -> None:
    encoded = SMOL.encode_conversation(WORKFLOW)
    messages = [
        message | {"content": message.get("content", f"[files.move(source='{name}')]")}
        for message, name in zip(WORKFLOW["messages"], ["", "", "a.txt", "", "b.txt", "", "", "", ""], strict=True)
    ]
    messages = [{name: message[name] for name in ("role", "content")} for message in messages]
    assert_it_is_what_inference_sees(messages, encoded, tools=[TOOL])
    assert said_in(encoded) == [message["content"] for message in messages if message["role"] == "assistant"]


TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from(" \n\t'=("), min_size=1, max_size=30).filter(
    # Of some control characters this tokenizer has no token; what looks like a special token is refused.
    lambda text: SPLITTER.decode(tokens_of(text)) == text
)


@settings(max_examples=150)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_any_text_of_an_assistant_comes_back_from_its_targets(exchanges: list[tuple[str, str]]) -> None:
    messages = [
        message
        for asked, answered in exchanges
        for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
    ]
    encoded = SMOL.encode_conversation({"messages": messages})
    assert_it_is_what_inference_sees(messages, encoded)
    assert said_in(encoded) == [answered for _, answered in exchanges]


def test_functions_and_calls_are_written_as_evaluation_reads_them() -> None:
    text = SPLITTER.decode(SMOL.encode_conversation(WORKFLOW).token_ids, skip_special_tokens=False)
    assert not SMOL.renders_tools
    assert json.dumps([TOOL["function"]]) in text
    assert "\n\nDo all that is asked.<|im_end|>" in text
    first = parse_calls(SPLITTER.decode(turns(SMOL.encode_conversation(WORKFLOW))[0][:-1]))
    assert first is not None
    assert [(keyword.arg, keyword.value.value) for keyword in first[0].keywords] == [("source", "a.txt")]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_template_that_knows_tools_writes_them_itself() -> None:
    template = (
        "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}CALL {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = ChatTemplate(SPLITTER, template)
    assert chat.renders_tools
    encoded = chat.encode_conversation(WORKFLOW)
    assert SPLITTER.decode(encoded.token_ids, skip_special_tokens=False).startswith("files.move;<|im_start|>system\nDo")
    assert SPLITTER.decode(turns(encoded)[0]) == 'CALL files.move {"source": "a.txt"}'


def test_targets_of_a_preference_are_its_answers_alone() -> None:
    prompt = WORKFLOW["messages"][:4]
    record = {
        "prompt": prompt,
        "tools": [TOOL],
        "chosen": WORKFLOW["messages"][4:7],
        "rejected": [{"role": "assistant", "content": "I would rather not."}],
    }
    chosen, rejected = SMOL.encode_preference(record)
    assert [SPLITTER.decode(turn) for turn in turns(chosen)] == ["[files.move(source='b.txt')]", "Both are moved."]
    assert [SPLITTER.decode(turn) for turn in turns(rejected)] == ["I would rather not."]
    num_prompt = chosen.is_target.index(True)
    assert chosen.token_ids[:num_prompt] == rejected.token_ids[: rejected.is_target.index(True)]


SAID = {"role": "assistant", "content": "b"}
ASKED = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no list of messages in messages"),
        ({"messages": "text"}, "no list of messages"),
        ({"messages": [ASKED]}, "no assistant turn"),
        ({"messages": [ASKED, {"role": "assistant"}]}, "message 2 of messages has no content that is a text"),
        ({"messages": [ASKED, {"role": "assistant", "content": ""}]}, "message 2 of messages says nothing"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, SAID]}, "no content that is a text"),
        ({"messages": [{"role": "judge", "content": "a"}, SAID]}, "has role 'judge'"),
        ({"messages": [ASKED, {"role": "assistant", "content": "b<|im_end|>"}]}, r"special token <\|im_end\|>"),
        ({"messages": [{"role": "user", "content": "<|endoftext|>"}, SAID]}, r"special token <\|endoftext\|>"),
        ({"messages": [{"role": "user", "content": "\ud800"}, SAID]}, "half a surrogate pair"),
        ({"messages": [SAID]}, "writes earlier messages anew"),
        ({"messages": [ASKED, SAID], "tools": [{}]}, "a tool has no name"),
        ({"messages": [ASKED, SAID], "tools": [{"name": "<|im_start|>"}]}, "special token"),
        ({"messages": [ASKED | {"tool_calls": [{"name": "f"}]}, SAID]}, "is no assistant's"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "a call without a name"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "no JSON"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "f()"}]}]}, "a call has names"),
        ({"messages": [ASKED, SAID | {"tool_calls": [{"name": "f"}]}]}, "has a text and calls"),
    ],
)
def test_a_record_that_cannot_be_used_says_why(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        SMOL.encode_conversation(record)


def test_a_preference_without_a_difference_or_an_answer_is_refused() -> None:
    with pytest.raises(BadRecord, match="are the same"):
        SMOL.encode_preference({"prompt": [ASKED], "chosen": [SAID], "rejected": [SAID]})
    with pytest.raises(BadRecord, match="rejected does not begin with an assistant turn"):
        SMOL.encode_preference({"prompt": [ASKED], "chosen": [SAID], "rejected": [ASKED]})


def test_a_template_that_cannot_be_learned_from_is_refused() -> None:
    whole = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(ConfigError, match="no special token ends an assistant turn"):
        ChatTemplate(SPLITTER, whole + "{% if add_generation_prompt %}assistant:{% endif %}").check()
    with pytest.raises(ConfigError, match="writes earlier messages anew"):
        ChatTemplate(SPLITTER, "{{ messages | length }}" + CHATML).check()
    with pytest.raises(ConfigError, match="the chat template refuses it"):
        ChatTemplate(SPLITTER, "{{ raise_exception('no roles') }}").check()


def test_a_tokenizer_with_the_tokens_of_chatml_needs_no_template(tmp_path: Path) -> None:
    byte_level("<|endoftext|>", *CHATML_TOKENS).save(str(tmp_path / "tokenizer.json"))
    chat = ChatTemplate.load(tmp_path)
    assert (chat.template, chat.end_of_turn) == (CHATML, "<|im_end|>")
    encoded = chat.encode_conversation({"messages": [ASKED, SAID, ASKED, SAID]})
    assert [len(turn) for turn in turns(encoded)] == [2, 2]
    byte_level("<|endoftext|>").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="add the special tokens"):
        ChatTemplate.load(tmp_path)


def test_a_directory_without_a_readable_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tokenizer that can be read"):
        ChatTemplate.load(tmp_path)
    shutil.copy(SMOLLM2 / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(DataError, match="holds no tokenizer that can be read"):
        ChatTemplate.load(tmp_path)
