"""One `key=value` of the command line: parse it, tell a group choice from a value, apply it to the composed values.

Values are applied here, not by Hydra, because here the schema is known: an error can name the key, what it takes and
the nearest key. The grammar is Hydra's own (hydra 1.3, "basic override syntax").
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from training.config.keys import known_keys, nearest, type_of, unknown_key
from training.config.secret_checks import refuse_secret_pairs, refuse_secret_values, refuse_secrets
from training.errors import ConfigError

CONF_DIRECTORY = Path(__file__).parents[2] / "conf"


def parse(overrides: Sequence[str]) -> list[Override]:
    """Return the parsed overrides, in order; `resume=auto` stands for resume.mode=auto.

    Raises:
        ConfigError: one is malformed, holds a secret, or speaks to Hydra itself, which Autarky only lets compose.
    """
    refuse_secrets(overrides)
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            refuse_secret_pairs(text)
            reason = f"is not of the form key=value ({str(error).splitlines()[0]})"
            raise ConfigError(*_split(text), reason, _mend(text)) from None
        if override.is_sweep_override():
            refuse_secret_pairs(text)
        elif not override.is_delete():
            refuse_secret_values({override.key_or_group: override.value()})
        if "hydra" in (re.split(r"[./]", place)[0] for place in (override.key_or_group, override.package or "")):
            reason = "Hydra only composes the values here, it runs nothing and writes nothing"
            raise ConfigError(*_split(text), reason, "leave it out; run.root=DIR sets the folder of run directories")
        if override.key_or_group == "resume" and not override.is_delete() and not isinstance(override.value(), dict):
            override = parser.parse_override(f"resume.mode={override.get_value_string()}")
        parsed.append(override)
    return parsed


def is_group_choice(override: Override) -> bool:
    """Return whether an override picks a file of a group (`model=tiny`) rather than a value (`model.num_layers=2`)."""
    if override.package is not None:
        return True
    is_group = override.key_or_group in group_names()
    return is_group and (override.is_delete() or not isinstance(override.value(), dict))


def group_names() -> list[str]:
    """Return the names of the config groups."""
    return sorted(path.name for path in CONF_DIRECTORY.iterdir() if any(path.glob("*.yaml")))


def group_choices(group: str) -> list[str]:
    """Return the names of the files of a group."""
    return sorted(path.stem for path in (CONF_DIRECTORY / group).glob("*.yaml"))


def check_group_choice(override: Override) -> None:
    """Check that the chosen file exists.

    Raises:
        ConfigError: it does not; the message names the nearest one.
    """
    group, choice = override.key_or_group, override.value()
    if group not in group_names():
        raise unknown_key(group, choice, group_names())
    _refuse_sweep(override)
    choices = group_choices(group)
    if choice in choices:
        return
    if not isinstance(choice, str):
        raise ConfigError(
            group, choice, "a group takes the name of one file", f"choices of {group}: {', '.join(choices)}"
        )
    close = nearest(choice, choices)
    hint = f"did you mean {group}={close[0]}? " if close else ""
    reason = f"there is no conf/{group}/{choice}.yaml"
    raise ConfigError(group, choice, reason, f"{hint}choices of {group}: {', '.join(choices)}")


def apply(config: DictConfig, override: Override) -> None:
    """Set one value of a composed config, in place.

    Raises:
        ConfigError: the schema has no such key, or the entry of a dictionary does not exist and is not added by '+'.
    """
    _refuse_sweep(override)
    key, value = override.key_or_group, override.value()
    known = known_keys(to_container(config))
    if type_of(key) is None:
        raise unknown_key(key, value, [*known, *group_names()])
    if key not in known and not override.is_add() and not override.is_force_add():
        close = nearest(key, known)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ConfigError(key, value, "there is no such entry", f"{hint}+{override.input_line} would add it")
    if override.is_delete():
        _delete(config, key, str(override.input_line))
    else:
        OmegaConf.update(config, key, value, merge=True, force_add=True)


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return one list of overrides per point of a sweep: the product of all `key=a,b`, the last one varying fastest.

    Raises:
        ConfigError: an override is malformed, or is a sweep that has no list of values.
    """
    axes = []
    for override in parse(overrides):
        if not override.is_sweep_override():
            axes.append([str(override.input_line)])
            continue
        try:
            axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        except HydraException as error:
            given = _split(str(override.input_line))
            raise ConfigError(*given, f"cannot be listed: {error}", "list the values: key=a,b,c") from None
    return [list(point) for point in itertools.product(*axes)]


def to_container(config: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    """Return a composed config as plain dictionaries and lists, interpolations resolved on demand."""
    container = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _delete(config: DictConfig, key: str, text: str) -> None:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else None
    if not isinstance(node, DictConfig) or get_origin(type_of(parent)) is not dict:
        reason = "only an entry of a dictionary can be left out"
        raise ConfigError(text, "", reason, f"{key}=null works where null is allowed")
    with open_dict(node):
        del node[name]


def _refuse_sweep(override: Override) -> None:
    if override.is_sweep_override():
        raise ConfigError(
            override.key_or_group,
            override.get_value_string(),
            "several values are a sweep, and this is one run",
            "put -m before the overrides of launch.submit; quote a text that holds a comma: key='\"a,b\"'",
        )


def _split(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _mend(text: str) -> str:
    if "=" not in text:
        return f"write {text}=VALUE" if text else "write key=value"
    key, value = _split(text)
    return f"quote the value for the shell and for Hydra: {key.strip()}='\"{value.strip()}\"'"
