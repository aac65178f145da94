"""Prompt and score of the Berkeley Function Calling Leaderboard's single turns; named by their YAML files.

Functions and calls are written as conversations in training data have them (`training/data/call_text.py`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eval.benchmarks.call_match import calls_match, read_calls
from eval.function_calls import parse_calls
from training.data.call_text import instructions, written_calls


def prompt(doc: Mapping[str, Any], *, compact: bool = False) -> str:
    """Return the whole prompt of an item; compact: functions are shown by a line each, not by their schemas."""
    told = instructions(json.loads(doc["functions"]), compact=compact)
    return f"{told}\n\nRequest: {doc['question']}\nCalls:"


def compact_prompt(doc: Mapping[str, Any]) -> str:
    """Return the whole prompt of an item, with functions by a line each."""
    return prompt(doc, compact=True)


def target(doc: Mapping[str, Any]) -> str:
    """Return a right answer of an item, made of the first allowed value of every parameter."""
    schemas = {function["name"]: function["parameters"] for function in json.loads(doc["functions"])}
    calls = []
    for answer in json.loads(doc["answer"]):
        ((name, allowed),) = answer.items()
        arguments = {
            parameter: _first(values, schemas[name]["properties"][parameter])
            for parameter, values in allowed.items()
            if values[0] != "" or parameter in schemas[name]["required"]
        }
        calls.append((name, arguments))
    return written_calls(calls)


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return acc: 1 if the answer is the calls that were asked for, and parsed: 1 if it is calls at all; else 0."""
    calls = read_calls(results[0])
    right = calls is not None and calls_match(calls, json.loads(doc["answer"]), json.loads(doc["functions"]))
    return {"acc": float(right), "parsed": float(bool(parse_calls(results[0])))}


def _first(values: Sequence[Any], schema: Mapping[str, Any]) -> Any:
    """Return the first allowed value that is one; in objects, each field has a list of allowed values in turn."""
    value = next(value for value in values if value != "")
    if isinstance(value, dict) and schema["type"] == "dict":
        return _first_fields(value)
    if isinstance(value, list) and schema.get("items", {}).get("type") == "dict":
        return [_first_fields(element) for element in value]
    return value


def _first_fields(value: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return {name: allowed[0] for name, allowed in value.items() if allowed[0] != ""}
