"""What has to be given on the command line to turn one config into another."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from training.config.schema import RunConfig
from training.config.typed import to_plain

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
_WORDS = ("true", "false", "null", "nan", "inf")
"""What that grammar takes for other than text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One value in which two configs differ."""

    key: str
    """Dotted."""
    before: Any
    """Plain value; None also where there was no such entry."""
    after: Any
    override: str
    """What changes the one into the other, in Hydra's grammar."""


def differences(before: RunConfig, after: RunConfig) -> list[Difference]:
    """Return all differences, in the schema's order: their overrides after those that led to `before` lead to `after`.

    A section that `before` leaves null cannot be told from a dictionary, and is given as one.
    """
    return list(_walk("", to_plain(before), to_plain(after)))


def _walk(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    for name in (*before, *(name for name in after if name not in before)):
        key, old, new = f"{prefix}{name}", before.get(name), after.get(name)
        if name not in after:
            yield Difference(key=key, before=old, after=None, override=f"~{key}")
        elif name not in before:
            yield Difference(key=key, before=None, after=new, override=f"+{key}={_text(new)}")
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _walk(f"{key}.", old, new)
        elif old != new:
            yield Difference(key=key, before=old, after=new, override=f"{key}={_text(new)}")


def _text(value: Any) -> str:
    """Return a plain value in Hydra's grammar of overrides (hydra 1.3): that of JSON, but for unquoted keys."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_text(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
