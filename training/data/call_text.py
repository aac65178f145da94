"""Functions and calls as text, for conversations whose chat template knows none.

Evaluation shows and reads the same text (`eval/benchmarks/bfcl.py`, `eval/workflows`): what is trained is what is
measured. The words follow the default prompt of the Berkeley Function Calling Leaderboard (bfcl-eval 2026.3.23,
constants/default_prompts.py).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Call = tuple[str, Mapping[str, Any]]
"""Name of a function and its arguments."""

CALL_FORMAT = "[name1(parameter1=value1, parameter2=value2), name2(parameter=value)]"


def instructions(functions: Sequence[Mapping[str, Any]], *, compact: bool = False) -> str:
    """Return what a model is told before a request: how to write calls, and which functions there are.

    Args:
        functions: their schemas: name, description, parameters (JSON schema).
        compact: fewer words, and a line for each function in place of its JSON schema: less than half of the tokens.
    """
    if compact:
        return (
            f"Do what is asked by calling functions. Answer with nothing but the calls, as {CALL_FORMAT} in Python's "
            "syntax. If no function can be used, or a parameter that it requires is not known, say so. Parameters with "
            f"a question mark may be left out. The functions:\n{listed(functions, compact=True)}"
        )
    return (
        "You are an expert in composing functions. You are given a request and a list of functions. Make one or more "
        "function calls to achieve what is asked. If none of the functions can be used, or the request lacks a "
        "parameter that a function requires, say so.\n\n"
        f"If you call functions, write them in the format {CALL_FORMAT}, in Python's syntax and with nothing else in "
        "your answer.\n\n"
        f"Here is the list of functions in JSON format:\n{listed(functions)}"
    )


def listed(functions: Sequence[Mapping[str, Any]], *, compact: bool = False) -> str:
    """Return functions as a JSON list of their schemas or, compact, a line for each."""
    return "\n".join(map(_line, functions)) if compact else json.dumps(functions)


def written_calls(calls: Iterable[Call]) -> str:
    """Return calls as an answer: `[move(source='a'), sort(name='b')]`."""
    return f"[{', '.join(map(_written, calls))}]"


def _written(call: Call) -> str:
    name, arguments = call
    return f"{name}({', '.join(f'{parameter}={value!r}' for parameter, value in arguments.items())})"


def _line(function: Mapping[str, Any]) -> str:
    """Return a function as `name(parameter: type, optional?: type): what it does`."""
    parameters = function.get("parameters", {})
    required = parameters.get("required", [])
    listed = [
        f"{name}{'' if name in required else '?'}: {_type(schema)}"
        for name, schema in parameters.get("properties", {}).items()
    ]
    return f"{function['name']}({', '.join(listed)}): {' '.join(function.get('description', '').split())}"


def _type(schema: Mapping[str, Any]) -> str:
    """Return a parameter's type in a word or two; the values it may have, where they are listed."""
    if "enum" in schema:
        return " | ".join(map(repr, schema["enum"]))
    kind, inner = schema.get("type", "any"), schema.get("items")
    return f"{kind} of {_type(inner)}" if isinstance(inner, Mapping) and "type" in inner else str(kind)
