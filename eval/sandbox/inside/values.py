"""Python values as lines of JSON, between two processes of which one must not be trusted.

What arrives is made of plain types only: no class of the sender's, whose `__eq__` could claim anything, gets through.
A subclass arrives as the type it extends, so a `Counter` still equals a dict; an iterator as an iterator over the same
values; whatever else as an `Opaque`, which equals nothing.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

LARGEST_LINE_BYTES = 2**20
_MOST_ITERATED = 100_000
_TAG = "type"
_JSON_INTEGER_BITS = 63


class Opaque:
    """A value of a type that is not carried."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<a {self.name}>"


def to_line(value: object) -> str:
    """Return a value as a line; see the module for what becomes of it.

    Raises:
        ValueError: it is too large, or contains itself.
    """
    try:
        line = json.dumps(_encoded(value))
    except RecursionError:
        raise ValueError("the value is nested too deeply") from None
    if len(line) >= LARGEST_LINE_BYTES:
        raise ValueError(f"the value needs more than {LARGEST_LINE_BYTES:,} bytes")
    return line + "\n"


def from_line(line: str) -> Any:
    """Return the value of a line that anyone may have written.

    Raises:
        ValueError: it is no such line.
    """
    try:
        return _decoded(json.loads(line))
    except (RecursionError, TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"it is no value: {type(error).__name__}") from error


def _encoded(value: object) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int(value)
        return number if number.bit_length() <= _JSON_INTEGER_BITS else {_TAG: "int", "of": hex(number)}
    if isinstance(value, float):
        return {_TAG: "float", "of": float.hex(value)}
    if isinstance(value, list):
        return [_encoded(child) for child in value]
    if isinstance(value, dict):
        return {_TAG: "dict", "of": [[_encoded(key), _encoded(child)] for key, child in value.items()]}
    if isinstance(value, bytes):
        return {_TAG: "bytes", "of": value.hex()}
    if isinstance(value, complex):
        return {_TAG: "complex", "of": [_encoded(value.real), _encoded(value.imag)]}
    if isinstance(value, Decimal | Fraction):
        return {_TAG: "Decimal" if isinstance(value, Decimal) else "Fraction", "of": str(value)}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {_TAG: kind.__name__, "of": [_encoded(child) for child in value]}
    if isinstance(value, Iterable):
        children = list(itertools.islice(value, _MOST_ITERATED + 1))
        if len(children) > _MOST_ITERATED:
            raise ValueError(f"it gives more than {_MOST_ITERATED:,} values")
        return {_TAG: "iterator", "of": [_encoded(child) for child in children]}
    return {_TAG: "opaque", "of": type(value).__name__}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(child) for child in value]
    if not isinstance(value, dict):
        return value
    return _FROM_TAG[value[_TAG]](value["of"])


def _children(made: Callable[[Iterator[Any]], Any]) -> Callable[[Any], Any]:
    return lambda children: made(_decoded(child) for child in children)


_FROM_TAG: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "dict": lambda pairs: {_decoded(key): _decoded(child) for key, child in pairs},
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*map(_decoded, parts)),
    "Decimal": lambda text: Decimal(str(text)),
    "Fraction": lambda text: Fraction(str(text)),
    "tuple": _children(tuple),
    "set": _children(set),
    "frozenset": _children(frozenset),
    "iterator": lambda children: iter([_decoded(child) for child in children]),
    "opaque": lambda name: Opaque(str(name)[:80]),
}
