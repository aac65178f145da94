"""The right way through a task, as a conversation: the gold calls run in the real systems, with what they return."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.function_calls import call_name, parse_calls
from eval.workflows.chat import Message
from eval.workflows.conversation import Conversation
from eval.workflows.simulator import Systems
from eval.workflows.tasks import WorkflowTask
from training.data.call_text import Call, written_calls

DONE = "All of it is done."
NO_FUNCTION = "None of the functions I have can do this."
NO_PARAMETER = "I cannot do this yet: something that I need to know is missing. Please tell me."


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldTurn:
    """A turn in which something is to be called."""

    turn: int
    calls: list[Call]
    num_messages: int
    """Messages of the conversation before the assistant's calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldPath:
    """A conversation that solves its task."""

    messages: list[Message]
    turns: list[GoldTurn]


def gold_path(task: WorkflowTask, systems: Systems, *, compact: bool = False) -> GoldPath:
    """Return the conversation that follows a task's answer: all calls of a turn in one answer, then a closing text.

    Args:
        task: what the user wants.
        systems: run the calls.
        compact: see Conversation.

    Raises:
        ValueError: the answer does not solve the task, or is none.
    """
    talk = Conversation(task, systems, compact=compact)
    turns = []
    for turn, texts in enumerate(task.answer):
        if texts:
            calls = named_calls(texts, task.schemas)
            turns.append(GoldTurn(turn=turn, calls=calls, num_messages=len(talk.messages)))
            talk.take(written_calls(calls))
        if not talk.done:
            talk.take(DONE if texts else NO_PARAMETER if task.category == "miss_param" else NO_FUNCTION)
    if not talk.done or talk.fault is not None:
        raise ValueError(f"{task.id} is not solved by its own answer: {talk.fault or 'it goes on'}")
    return GoldPath(messages=talk.messages, turns=turns)


def named_calls(texts: Sequence[str], schemas: Mapping[str, Mapping[str, Any]]) -> list[Call]:
    """Return calls with all arguments by their names, in the order of the schemas where a call had none.

    Raises:
        ValueError: a text is not one call of one of the functions with plain values.
    """
    return [_named(text, schemas) for text in texts]


def _named(text: str, schemas: Mapping[str, Mapping[str, Any]]) -> Call:
    calls = parse_calls(text)
    if calls is None or len(calls) != 1 or (name := call_name(calls[0])) not in schemas:
        raise ValueError(f"{text!r} is no call of one of {sorted(schemas)}")
    assert name is not None
    parameters = list(schemas[name]["parameters"]["properties"])
    if len(calls[0].args) > len(parameters):
        raise ValueError(f"{text!r} has more arguments than {name} has parameters")
    given = dict(zip(parameters, map(ast.literal_eval, calls[0].args), strict=False))
    for keyword in calls[0].keywords:
        if keyword.arg not in parameters:
            raise ValueError(f"{text!r}: {name} has no parameter {keyword.arg}")
        given[keyword.arg] = ast.literal_eval(keyword.value)
    return name, given
