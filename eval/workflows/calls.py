"""Which of a model's calls may be run: known functions with plain values, written anew so that nothing else is in them.

The leaderboard's code puts calls into text and gives that to Python's own `eval`, where an argument could be any
expression. What is handed on here was parsed, and holds nothing but a name that is allowed and literals.
"""

import ast
import math
from collections.abc import Collection
from typing import Any

from eval.function_calls import call_name

_SHOWN_CHARACTERS = 80


def safe_call(call: ast.Call, names: Collection[str]) -> str:
    """Return a call as text that can be run.

    Raises:
        ValueError: it calls something else than the named functions, or an argument is no literal; the message is for
            the model.
    """
    name = call_name(call)
    if name not in names:
        raise ValueError(f"there is no function {name[:_SHOWN_CHARACTERS] if name else 'without a name'}")
    arguments = [_literal(argument, str(index)) for index, argument in enumerate(call.args, start=1)]
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("arguments are given by their names, not by **")
        arguments.append(f"{keyword.arg}={_literal(keyword.value, keyword.arg)}")
    return f"{name}({', '.join(arguments)})"


def _literal(node: ast.expr, name: str) -> str:
    try:
        return _written(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        # Not quoted: what is too deep for literal_eval is too deep to be written as text again.
        reason = "is no literal: give a number, text, list or dictionary"
        raise ValueError(f"argument {name[:_SHOWN_CHARACTERS]} {reason}") from None


def _written(value: Any) -> str:
    match value:
        case list():
            return f"[{', '.join(map(_written, value))}]"
        case tuple():
            return f"({''.join(f'{_written(element)}, ' for element in value)})"
        case dict():
            return f"{{{', '.join(f'{_written(name)}: {_written(element)}' for name, element in value.items())}}}"
        case str():
            # The leaderboard's code takes a name before a bracket for a call, also within a text.
            return repr(value).replace("(", "\\x28")
        case None | bool() | int():
            return repr(value)
        case float() if math.isfinite(value):  # 1e999 would be written as the name inf
            return repr(value)
    raise ValueError(f"{value!r} is no plain value")
