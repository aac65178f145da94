"""Every dotted key the schema knows, what may stand there, and the nearest one to a typing mistake."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from training.config.schema import RunConfig
from training.errors import ConfigError

_PLAIN_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def type_of(key: str) -> Any:
    """Return the type hint of a dotted key, None if the schema has no such key. Dictionary entries may be new."""
    hint: Any = RunConfig
    for name in key.split("."):
        hint = _child(without_none(hint), name)
        if hint is None:
            return None
    return hint


def known_keys(config: Mapping[str, Any]) -> list[str]:
    """Return all dotted keys of the schema, with the dictionary entries (training stages, sources…) of a config."""
    return list(_walk(RunConfig, config, ""))


def nearest(given: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that resemble a mistyped one, best first.

    In a section that exists only its own keys count; else keys of the same depth come before others, and before those
    that merely share the last part (`lr`).
    """
    names = list(dict.fromkeys(known))
    section, _, leaf = given.rpartition(".")
    same_depth = [name for name in names if name.count(".") == given.count(".")]
    if section in names:
        siblings = _leaves(section, names)
        close = [f"{section}.{name}" for name in difflib.get_close_matches(leaf, siblings, n=3, cutoff=0.6)]
    else:
        close = difflib.get_close_matches(given, same_depth, n=3, cutoff=0.7)
        close = close or difflib.get_close_matches(given, names, n=3, cutoff=0.7)
    if close:
        best = _likeness(given, close[0])
        return [name for name in close if _likeness(given, name) > best - 0.1]
    return [name for name in names if name.rpartition(".")[2] == leaf][:3]


def unknown_key(key: str, given: object, known: Iterable[str]) -> ConfigError:
    """Return the error for a key that does not exist, with the nearest ones that do."""
    known = list(known)
    names, section = nearest(key, known), key.rpartition(".")[0]
    if names:
        remedy = f"did you mean {' or '.join(names)}?"
    elif section in known:
        remedy = f"{section} has: {', '.join(_leaves(section, known))}"
    else:
        remedy = "conf/README.md lists all keys"
    return ConfigError(key, given, "there is no such key", remedy)


def wrong_type(key: str, given: object) -> ConfigError:
    """Return the error for a value that does not fit its key, with the nearest value that does."""
    hint = without_none(type_of(key))
    remedy = f"give {describe(hint)}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        names = nearest(str(given), [member.value for member in hint])
        remedy = f"did you mean {key}={names[0]}?" if names else f"take {key}={next(iter(hint)).value}"
    elif hint is int and isinstance(given, float) and given.is_integer():
        remedy = f"write {key}={int(given):_}"
    elif hint is float and isinstance(given, str) and (number := _number(given)) is not None:
        remedy = f"write {key}={number!r} (YAML takes {given} for a text)"
    elif hint is int and isinstance(given, float) and abs(given) < float("inf"):
        remedy = f"write {key}={round(given)}"
    return ConfigError(key, given, f"expected {describe(hint)}", remedy)


def describe(hint: Any) -> str:
    """Return what may stand at a key, in words."""
    bare = without_none(hint)
    or_null = " or null" if bare is not hint else ""
    if isinstance(bare, type) and issubclass(bare, Enum):
        return "one of " + ", ".join(member.value for member in bare) + or_null
    if is_dataclass(bare):
        return "a section with its own keys" + or_null
    if get_origin(bare) is list:
        return f"a list, each {describe(get_args(bare)[0])}" + or_null
    if get_origin(bare) is dict:
        return f"names, each with {describe(get_args(bare)[1])}" + or_null
    return _PLAIN_NAMES.get(bare, "a value") + or_null


def without_none(hint: Any) -> Any:
    """Return the type hint without its `| None`; the very same object if it has none."""
    if get_origin(hint) in (Union, UnionType):
        return next(part for part in get_args(hint) if part is not NoneType)
    return hint


def _leaves(section: str, names: Iterable[str]) -> list[str]:
    return [name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == section]


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _child(hint: Any, name: str) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return get_type_hints(hint).get(name)
    if get_origin(hint) is dict:
        return get_args(hint)[1]
    if get_origin(hint) is list and name.isdigit():
        return get_args(hint)[0]
    return Any if hint is Any else None


def _walk(hint: Any, value: Any, prefix: str) -> Iterable[str]:
    hint = without_none(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        children: dict[str, Any] = get_type_hints(hint)
    elif get_origin(hint) is dict and isinstance(value, Mapping):
        children = {str(name): get_args(hint)[1] for name in value}
    else:
        return
    for name, child in children.items():
        key = f"{prefix}{name}"
        yield key
        yield from _walk(child, value.get(name) if isinstance(value, Mapping) else None, f"{key}.")


def no_such(key: str, given: str, section: str, known: list[str]) -> ConfigError:
    """Return the error that a section has nothing of a name, with the nearest one that it has."""
    close = nearest(given, known)
    hint = f"did you mean {close[0]}? " if close else ""
    return ConfigError(key, given, f"{section} has no {given}", f"{hint}{section} has: {', '.join(known)}")
