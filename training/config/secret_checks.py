"""No secret and no code goes into a config: it is frozen, logged, reported and stored with every checkpoint.

Secrets belong into the environment or a file that only their owner reads; Autarky itself needs none (wandb finds
WANDB_API_KEY or ~/.netrc by itself).
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from antlr4 import ParserRuleContext
from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse as parse_interpolation

from training.config.secret_names import has_password, is_secret_key, is_secret_variable
from training.errors import ConfigError

HIDDEN = "(not shown)"

_PAIR = re.compile(r"""["']?(?P<key>[A-Za-z0-9_.-]+)["']?\s*:\s*(?P<value>[^\s,{}\[\]]+)""")
"""An entry of a dictionary in Hydra's grammar, at any depth."""
_SHORTEST_SECRET = 8
"""Environment values shorter than that may well be words that a config holds too."""
_HYDRA_CALLS = frozenset({"_target_", "_partial_", "_args_", "_recursive_", "_convert_"})


def refuse_secrets(overrides: Sequence[str], *, environment: Mapping[str, str] = os.environ) -> None:
    """Check that no override of a command line holds a secret, before any message repeats it.

    Raises:
        ConfigError: one does; its value is not in the message.
    """
    secrets = _secrets(environment)
    for text in overrides:
        key, _, value = text.partition("=")
        _check_entry(key.strip().lstrip("+~"), value, secrets, is_number=_is_number(value))


def refuse_secret_pairs(text: str) -> None:
    """Check an override that cannot be parsed, or stands for several: no `name: value` in it looks like a secret.

    Raises:
        ConfigError: one does; its value is not in the message.
    """
    for pair in _PAIR.finditer(text.partition("=")[2]):
        _check_entry(pair["key"], pair["value"], {}, is_number=_is_number(pair["value"]))


def refuse_secret_values(values: Mapping[str, Any], *, environment: Mapping[str, str] = os.environ) -> None:
    """Check a config's plain values, wherever they come from, like `refuse_secrets`, and that no key asks for a call.

    Raises:
        ConfigError: a value looks like a secret, or a key is one of Hydra's that name code to run.
    """
    secrets = _secrets(environment)
    for key, value in _leaves(values, ""):
        name = key.rpartition(".")[2]
        if name in _HYDRA_CALLS:
            reason = "names code to run, and a config holds values only"
            raise ConfigError(key, value, reason, "leave it out; what runs is chosen by names such as parallel=zero3")
        _check_entry(key, "" if value is None else str(value), secrets, is_number=not isinstance(value, str))


def refuse_resolvers(values: Mapping[str, Any]) -> None:
    """Check that no value asks a resolver (`${oc.env:…}`); `${run.seed}`, another value of the config, is fine.

    Raises:
        ConfigError: one does: what it returns would be frozen into the run directory.
    """
    for key, value in _leaves(values, ""):
        if isinstance(value, str) and "${" in value and _asks_resolver(value):
            raise ConfigError(
                key,
                value,
                "a resolver's answer, such as an environment variable, would be frozen into the run directory",
                "write the value itself, or let the shell fill it in",
            )


def _check_entry(key: str, value: str, secrets: Mapping[str, str], *, is_number: bool) -> None:
    remedy = "leave it in the environment or a file only you can read; Autarky passes the environment on to its ranks"
    if value and not is_number and is_secret_key(key):
        raise ConfigError(key, HIDDEN, "has the name of a secret, and a config is written to the run directory", remedy)
    if has_password(value):
        raise ConfigError(key, HIDDEN, "is an address with a password in it", f"{remedy}; write it without user:…@")
    for text in (key, value):
        for name, secret in secrets.items():
            if secret in text:
                shown = HIDDEN if text is key else key
                reason = f"holds the value of the environment variable {name}, which has the name of a secret"
                raise ConfigError(shown, HIDDEN, reason, remedy)


def _secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment's secrets; a path to one is none."""
    return {
        name: value
        for name, value in environment.items()
        if is_secret_variable(name) and len(value) >= _SHORTEST_SECRET and not value.startswith(("/", "~", "."))
    }


def _asks_resolver(text: str) -> bool:
    try:
        return _has_resolver(parse_interpolation(text))
    except GrammarParseError:
        return False  # OmegaConf refuses it itself


def _has_resolver(node: Any) -> bool:
    if isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext):
        return True
    return isinstance(node, ParserRuleContext) and any(_has_resolver(child) for child in node.getChildren())


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\s*(?:[+-]?[0-9][0-9_.eE+-]*|true|false|null)\s*", text, re.IGNORECASE))


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything that is no dictionary or list, and of empty ones; keys are texts too."""
    children: list[tuple[Any, Any]] = []
    if isinstance(node, Mapping):
        children = list(node.items())
    elif isinstance(node, list):
        children = list(enumerate(node))
    if not children:
        yield key, node
    for name, child in children:
        if name in _HYDRA_CALLS:
            yield f"{key}.{name}".lstrip("."), child
        yield from _leaves(child, f"{key}.{name}".lstrip("."))
