"""Records of conversations as they are in files: checked, and functions and calls written as text where need be.

Naming is that of OpenAI's chat API and of Hugging Face's chat templates: a message has `role`, `content`, and an
assistant's may have `tool_calls`; `tools` are the functions on offer.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from keyword import iskeyword
from typing import Any

from training.data.call_text import instructions, written_calls

Messages = list[dict[str, Any]]

ROLES = ("system", "user", "assistant", "tool")
_KEPT = ("role", "content", "tool_calls", "tool_call_id", "name")
"""Of a message; other keys are not shown to the template."""


class BadRecord(ValueError):
    """A record that cannot be used; says why in a few words. Its reader puts it into quarantine."""


def checked_messages(record: Mapping[str, Any], field: str) -> Messages:
    """Return a record's list of messages, content and calls in one shape each.

    Raises:
        BadRecord: it is none.
    """
    messages = record.get(field)
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise BadRecord(f"no list of messages in {field}")
    return [_checked(message, f"message {number} of {field}") for number, message in enumerate(messages, start=1)]


def checked_tools(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a record's functions as `{"type": "function", "function": schema}`; none if it has none.

    Raises:
        BadRecord: they are no functions.
    """
    tools = record.get("tools") or []
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise BadRecord("tools is no list")
    found = []
    for tool in tools:
        schema = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(schema, Mapping) or not isinstance(schema.get("name"), str):
            raise BadRecord("a tool has no name")
        found.append({"type": "function", "function": dict(schema)})
    return found


def texts_in(messages: Messages, tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield every text that a conversation's author has written.

    Raises:
        BadRecord: one of them has no UTF-8 form.
    """
    for message in messages:
        calls = message.get("tool_calls", [])
        for text in (message["content"], message.get("name"), *map(_plain, calls)):
            if isinstance(text, str):
                yield _encodable(text)
    yield from (_encodable(_plain(tool)) for tool in tools)


def written_as_text(messages: Messages, tools: Sequence[Mapping[str, Any]]) -> Messages:
    """Return messages with the functions in the system message, and calls as the assistant's text.

    Raises:
        BadRecord: calls have no such form that evaluation would read again.
    """
    shown = [_written(message) for message in messages]
    if not tools:
        return shown
    told = instructions([tool["function"] for tool in tools])
    if shown and shown[0]["role"] == "system":
        return [{"role": "system", "content": f"{told}\n\n{shown[0]['content']}"}, *shown[1:]]
    return [{"role": "system", "content": told}, *shown]


def _checked(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRecord(f"{name} is no object")
    if message.get("role") not in ROLES:
        raise BadRecord(f"{name} has role {str(message.get('role'))[:20]!r}, none of {', '.join(ROLES)}")
    checked = {key: message[key] for key in _KEPT if message.get(key) is not None}
    calls = [_checked_call(call, name) for call in checked.pop("tool_calls", [])]
    if calls and checked["role"] != "assistant":
        raise BadRecord(f"{name} has tool_calls, and is no assistant's")
    content = checked.get("content", "" if calls else None)
    if not isinstance(content, str):
        raise BadRecord(f"{name} has no content that is a text")
    if checked["role"] == "assistant" and not content and not calls:
        raise BadRecord(f"{name} says nothing")
    return checked | {"content": content} | ({"tool_calls": calls} if calls else {})


def _checked_call(call: Any, name: str) -> dict[str, Any]:
    """Return a call whose arguments are an object; OpenAI's API has them as JSON text."""
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise BadRecord(f"{name} has a call whose arguments are no JSON") from error
    if not isinstance(function.get("name"), str) or not isinstance(arguments, Mapping):
        raise BadRecord(f"{name} has a call without a name, or whose arguments are no object")
    return {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}


def _written(message: dict[str, Any]) -> dict[str, Any]:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    if not calls:
        return {"role": message["role"], "content": message["content"]}
    if message["content"]:
        raise BadRecord("a message has a text and calls, and the chat template knows no calls")
    if not all(_is_name(part) for name, arguments in calls for part in (*name.split("."), *arguments)):
        raise BadRecord("a call has names that are none in Python, and the chat template knows no calls")
    return {"role": message["role"], "content": written_calls(calls)}


def _is_name(text: str) -> bool:
    return text.isidentifier() and not iskeyword(text)


def _plain(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord("a message holds half a surrogate pair") from error
    return text
