"""Function calls in a model's answer, read as Python's syntax and never run: `[move(source="a"), sort("b")]`."""

import ast
import warnings

_LARGEST_CHARACTERS = 20_000
"""Of an answer; a longer one is no list of calls."""


def parse_calls(text: str) -> list[ast.Call] | None:
    """Return the calls that an answer consists of; None if it is anything else, and nothing but them counts.

    As in the leaderboard's own runs, backticks around the list are taken off and missing brackets put on.
    """
    text = text.strip("`\n ")
    if len(text) > _LARGEST_CHARACTERS:
        return None
    text = text if text.startswith("[") else f"[{text}"
    text = text if text.endswith("]") else f"{text}]"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" in a string is the model's business
            body = ast.parse(text.strip().strip("'"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # all that a text can make the parser raise
        return None
    elements = [body] if isinstance(body, ast.Call) else body.elts if isinstance(body, ast.List | ast.Tuple) else [None]
    calls = [element for element in elements if isinstance(element, ast.Call)]
    return calls if len(calls) == len(elements) else None


def call_name(call: ast.Call) -> str | None:
    """Return the dotted name of what is called; None if it is not a name."""
    parts, node = [], call.func
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else None
