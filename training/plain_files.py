"""Files that anyone may have written, read with suspicion: plain, bounded in size and depth, of the declared types.

A pipe in a file's place would wait for ever, a link to /dev/zero has no end, and nested brackets or YAML aliases make
much out of little. Every reader here says so with a ValueError, which its caller turns into words for the user.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")

_LARGEST_BYTES = 2**26
_LARGEST_YAML_BYTES = 2**20
_DEEPEST = 64
_SHOWN_CHARACTERS = 80


def read_text(path: Path, *, largest_bytes: int = _LARGEST_BYTES) -> str:
    """Return the content of a UTF-8 file.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: it is no plain file (or a link to one), larger than `largest_bytes`, or not UTF-8.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no plain file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(largest_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > largest_bytes:
        raise ValueError(f"it is larger than {largest_bytes:,} bytes")
    return content.decode("utf-8")


def read_json(path: Path, *, largest_bytes: int = _LARGEST_BYTES) -> Any:
    """Return the values in a JSON file, at most 64 deep.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: it is no such file.
    """
    return parse_json(read_text(path, largest_bytes=largest_bytes))


def parse_json(text: str | bytes, *, strict: bool = False) -> Any:
    """Return the values in a JSON text, at most 64 deep.

    Args:
        text: the text.
        strict: names must be unique in their object, and NaN and Infinity, which are not JSON, are refused.

    Raises:
        ValueError: it is no such text.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _unique, "parse_constant": _refuse_constant} if strict else {}
    try:
        values = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [values]
    for _ in range(_DEEPEST):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return values
    raise ValueError("it is nested too deeply")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{_shown(name)} stands there twice")
        values[name] = value
    return values


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def read_yaml(path: Path) -> Any:
    """Return the plain values in a YAML file: at most 64 deep, no tag that names code, no alias, no name twice.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: it is no such file.
    """
    text = read_text(path, largest_bytes=_LARGEST_YAML_BYTES)
    loader: _TreeLoader | None = None
    try:
        loader = _TreeLoader(text)
        return loader.get_single_data()
    # PyYAML's constructors let through what int(), a regular expression without a match or a date raises.
    except (yaml.YAMLError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"it is not YAML of plain values: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()


def typed(kind: type[T], values: object) -> T:
    """Return a dataclass of JSON values, each of its field's declared type; whole numbers have 64 bits.

    Raises:
        ValueError: a field is missing, unknown or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{_shown(values)} stands where an object belongs")
    hints = _hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{_shown(name)} is no field")
        if not _is_plain(value, _plain_types(hints[name])) and not _fits(hints[name], value):
            raise ValueError(f"{name} is {_shown(value)}")
    try:
        return kind(**values)
    except TypeError as error:  # a field without a value
        raise ValueError(str(error)) from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _plain_types(hint: Any) -> frozenset[type]:
    """Return the types of plain values that fit, so that a log of millions of plain numbers is read quickly."""
    if get_origin(hint) in (Union, UnionType):
        return frozenset().union(*map(_plain_types, get_args(hint)))
    return frozenset({float, int} if hint is float else {hint} if hint in (str, bool, int, NoneType) else ())


def _is_plain(value: object, types: frozenset[type]) -> bool:
    kind = type(value)
    return kind in types and (kind is not int or -(2**63) <= value < 2**63)  # pyright: ignore[reportOperatorIssue]


def _fits(hint: Any, value: object) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(argument, value) for argument in arguments)
    if origin in (list, tuple):
        plain = _plain_types(arguments[0])
        return isinstance(value, origin) and all(_is_plain(v, plain) or _fits(arguments[0], v) for v in value)
    if origin in (dict, Mapping):
        plain = _plain_types(arguments[1])
        return isinstance(value, dict) and all(
            _is_plain(child, plain) or _fits(arguments[1], child) for child in value.values()
        )
    if hint in (int, float):
        if isinstance(value, int):
            return not isinstance(value, bool) and -(2**63) <= value < 2**63
        return hint is float and isinstance(value, float)
    return hint is Any or isinstance(value, NoneType if hint is None else hint)


def _shown(value: object) -> str:
    """Return a value for a message; JSON has no references, so a text is never longer than its file."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


class _TreeLoader(yaml.SafeLoader):
    """YAML that is a tree: aliases could stand for more than memory holds, depth for more than the stack does."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node, unless it is an alias or too deep."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias (*name); write the values out")
        if self._depth >= _DEEPEST:
            raise yaml.YAMLError("it is nested too deeply")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the next mapping, unless a name stands there twice: PyYAML would take the last one in silence."""
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := next((name for name, number in names.items() if number > 1), None):
            raise yaml.YAMLError(f"{_shown(twice)} stands there twice")
        return super().construct_mapping(node, deep)
