"""Answers that are wrong the way models are wrong, each made from the right one: the rejected half of preference pairs.

Pure and deterministic: the same calls and name give the same wrong answers.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from eval.function_calls import parse_calls
from training.data.call_text import Call, written_calls

Schemas = Mapping[str, Mapping[str, Any]]


def wrong_answers(name: str, calls: Sequence[Call], schemas: Schemas, earlier: Sequence[Call]) -> dict[str, str]:
    """Return kind -> wrong answer, of the kinds that can be made from these calls.

    other_function calls another function of those on offer with the same arguments, missing_argument leaves out one
    that is required, other_value takes one from an earlier call or another parameter, prose says what it would do, and
    cut_off ends in the middle of the calls.

    Args:
        name: of the item; what varies follows from it.
        calls: the right answer.
        schemas: of all functions on offer.
        earlier: calls of the turns before.
    """
    found = {
        "other_function": _other_function(name, calls, schemas),
        "missing_argument": _missing_argument(name, calls, schemas),
        "other_value": _other_value(name, calls, earlier),
    }
    answers = {kind: written_calls(wrong) for kind, wrong in found.items() if wrong is not None and wrong != [*calls]}
    return answers | {"prose": _prose(calls), "cut_off": _cut_off(name, written_calls(calls))}


def _other_function(name: str, calls: Sequence[Call], schemas: Schemas) -> list[Call] | None:
    index = _drawn(name, "which call", len(calls))
    called, arguments = calls[index]
    others = sorted(set(schemas) - {call for call, _ in calls})
    if not others:
        return None
    # The more parameters it shares with the right one, the easier it is mistaken for it.
    shared = {other: len(set(schemas[other]["parameters"]["properties"]) & set(arguments)) for other in others}
    likely = [other for other in others if shared[other] == max(shared.values())]
    other = likely[_drawn(name, called, len(likely))]
    return _with(calls, index, (other, arguments))


def _missing_argument(name: str, calls: Sequence[Call], schemas: Schemas) -> list[Call] | None:
    places = [
        (index, parameter)
        for index, (called, arguments) in enumerate(calls)
        for parameter in arguments
        if parameter in schemas[called]["parameters"].get("required", [])
    ]
    if not places:
        return None
    index, left_out = places[_drawn(name, "which argument", len(places))]
    called, arguments = calls[index]
    return _with(calls, index, (called, {key: value for key, value in arguments.items() if key != left_out}))


def _other_value(name: str, calls: Sequence[Call], earlier: Sequence[Call]) -> list[Call] | None:
    places = [
        (index, parameter, other)
        for index, (_, arguments) in enumerate(calls)
        for parameter, value in arguments.items()
        for other in _values(earlier) or _values(calls)
        if type(other) is type(value) and other != value and not isinstance(value, bool)
    ]
    if not places:
        return None
    index, parameter, other = places[_drawn(name, "which value", len(places))]
    called, arguments = calls[index]
    return _with(calls, index, (called, {**arguments, parameter: other}))


def _prose(calls: Sequence[Call]) -> str:
    told = [
        called
        + (" with " + ", ".join(f"{key} set to {value!r}" for key, value in arguments.items()) if arguments else "")
        for called, arguments in calls
    ]
    return f"To do this, I would call {', then '.join(told)}."


def _cut_off(name: str, text: str) -> str:
    """Return a beginning of an answer that is no list of calls."""
    num_characters = len(text) // 2 + _drawn(name, "where it ends", len(text) // 3 + 1)
    while parse_calls(text[:num_characters]) is not None:
        num_characters -= 1
    return text[:num_characters]


def _values(calls: Sequence[Call]) -> list[Any]:
    return [value for _, arguments in calls for value in arguments.values()]


def _with(calls: Sequence[Call], index: int, call: Call) -> list[Call]:
    return [*calls[:index], call, *calls[index + 1 :]]


def _drawn(name: str, what: str, count: int) -> int:
    """Return a number below a count that follows from an item's name."""
    return int.from_bytes(hashlib.sha256(f"{what}/{name}".encode()).digest()[:8], "big") % count
