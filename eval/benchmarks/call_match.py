"""Whether calls are those that were asked for, by the rules of the Berkeley Function Calling Leaderboard.

Written after `bfcl_eval/eval_checker/ast_eval/ast_checker.py` and `ast_parse` of bfcl-eval 2026.3.23, which evaluate
parts of a model's answer; here nothing is ever run.
"""

import ast
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from eval.function_calls import call_name, parse_calls

Call = tuple[str, dict[str, Any]]
"""Name of a function and its arguments."""

_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def read_calls(text: str) -> list[Call] | None:
    """Return the calls of an answer with the values of their arguments; None if it is no list of such calls.

    A name stands for itself as text: it may be a variable that the request speaks of. Positional arguments are left
    out, as in the leaderboard.
    """
    nodes = parse_calls(text)
    if nodes is None:
        return None
    try:
        return [_call(node) for node in nodes]
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return None


def calls_match(
    calls: Sequence[Call], answers: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]]
) -> bool:
    """Return whether there is a call for every answer and an answer for every call, in any order.

    Args:
        calls: the model's.
        answers: for each call {name: {parameter: allowed values}}; "" among them allows to leave it out.
        functions: the schemas that were offered.
    """
    if len(calls) != len(answers):
        return False
    schemas = {function["name"]: function["parameters"] for function in functions}
    left = list(calls)
    for answer in answers:
        ((name, allowed),) = answer.items()
        for index, (called, arguments) in enumerate(left):
            if called == name and _arguments_match(arguments, allowed, schemas[name]):
                del left[index]
                break
        else:
            return False
    return True


def _call(node: ast.Call) -> Call:
    name = call_name(node)
    arguments = {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    if name is None or len(arguments) < len(node.keywords):
        raise ValueError("no plain call")
    return name, arguments


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case ast.Name(id=name):
            return name
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_number(left), _number(right))
        case ast.Call(keywords=[]) | ast.Subscript():
            return ast.unparse(node)
        case ast.Call():
            name, arguments = _call(node)
            return {name: arguments}
    raise ValueError(f"{ast.unparse(node)} is no value")


def _number(node: ast.expr) -> Any:
    value = _value(node)
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _arguments_match(arguments: Mapping[str, Any], allowed: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    properties = schema["properties"]
    return (
        all(name in arguments for name in schema["required"])
        and all(name in arguments or "" in values for name, values in allowed.items())
        and all(
            name in properties and name in allowed and _argument_matches(value, allowed[name], properties[name])
            for name, value in arguments.items()
        )
    )


def _argument_matches(value: Any, allowed: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    declared = schema["type"]
    expected = _TYPES[declared]
    inner = _TYPES[schema["items"]["type"]] if declared in ("array", "tuple") else None
    if declared == "tuple" and type(value) is tuple:
        value = list(value)
    if declared == "float" and type(value) is int:
        value = float(value)
    answer_type = _type_of(allowed)
    if type(value) is not expected or answer_type not in (None, expected):
        # Another type than the schema's is right where the answers have it: the name of a variable.
        return type(value) in (expected, answer_type) and value in allowed
    if inner is not None and not any(_elements_fit(value, answer, inner) for answer in allowed):
        return False
    if expected is dict:
        return any(_dict_matches(value, answer) for answer in allowed if answer != "")
    if inner is dict:
        return any(len(value) == len(answer) and all(map(_dict_matches, value, answer)) for answer in allowed)
    if expected is str:
        return _plain(value) in [_plain(answer) for answer in allowed if isinstance(answer, str)]
    if expected is list:
        return [_plain(element) for element in value] in [[_plain(element) for element in answer] for answer in allowed]
    return value in allowed


def _type_of(allowed: Sequence[Any]) -> type | None:
    return next((type(answer) for answer in allowed if answer != ""), None)


def _elements_fit(value: Sequence[Any], answer: Any, inner: type) -> bool:
    """Return whether all elements of a list have the schema's type for them, or that of an answer's elements."""
    return not isinstance(answer, list) or all(type(element) in (inner, _type_of(answer)) for element in value)


def _dict_matches(value: Any, answer: Mapping[str, Sequence[Any]]) -> bool:
    return (
        isinstance(value, dict)
        and all(
            key in answer and _plain(element) in [_plain(allowed) for allowed in answer[key]]
            for key, element in value.items()
        )
        and all(key in value or "" in allowed for key, allowed in answer.items())
    )


def _plain(value: Any) -> Any:
    """Return a text without what may be written one way or another: case, spaces, punctuation, kind of quotes."""
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"') if isinstance(value, str) else value
