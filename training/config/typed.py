"""Plain values -> frozen dataclasses, strictly, and back. Nothing is guessed: a text is never taken for a number.

Own code, because OmegaConf 2.3 cannot merge into nested frozen dataclasses ("read-only config node") and its errors
name neither the remedy nor the nearest value.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from training.config.keys import describe, known_keys, type_of, unknown_key, without_none, wrong_type
from training.config.schema import ModelConfig, RunConfig
from training.errors import ConfigError

_UNSET = "???"
"""OmegaConf's mark of a value that has to be given."""


def to_run_config(values: Mapping[str, Any]) -> RunConfig:
    """Return the typed config of plain values; fields without a value take the schema's default.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type.
    """
    return _dataclass(RunConfig, values, "", values)


def to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Return the typed model section of plain values, by itself; as strict as `to_run_config`."""
    return _dataclass(ModelConfig, values, "model", {"model": values})


def to_plain(config: RunConfig) -> dict[str, Any]:
    """Return the config as dictionaries, lists, texts, numbers and None, in the schema's order."""
    return _plain(asdict(config))


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values of an earlier version's config with the schema's default for each field it did not know.

    What a later version adds does by default what the earlier one did.
    """
    return _completed(RunConfig, values)


def _completed(hint: Any, value: Any) -> Any:
    bare = without_none(hint)
    if get_origin(bare) in (dict, list) and isinstance(value, Mapping | list):
        child = get_args(bare)[-1]
        if isinstance(value, Mapping):
            return {name: _completed(child, item) for name, item in value.items()}
        return [_completed(child, item) for item in value]
    if not (isinstance(bare, type) and is_dataclass(bare) and isinstance(value, Mapping)):
        return value
    hints, completed = get_type_hints(bare), {}
    for field in fields(bare):
        if field.name in value:
            completed[field.name] = _completed(hints[field.name], value[field.name])
        elif field.default is not MISSING or field.default_factory is not MISSING:
            default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
            completed[field.name] = _plain(asdict(default) if is_dataclass(default) else default)  # type: ignore[arg-type]
    return completed | {name: item for name, item in value.items() if name not in hints}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return value.value if isinstance(value, Enum) else value


def _value(hint: Any, value: Any, key: str, root: Mapping[str, Any]) -> Any:
    bare = without_none(hint)
    if value is None and bare is not hint:
        return None
    if bare is Any:
        return value
    if isinstance(bare, type) and is_dataclass(bare):
        return _dataclass(bare, value, key, root)
    if get_origin(bare) is dict and isinstance(value, Mapping):
        child = get_args(bare)[1]
        return {str(name): _value(child, item, f"{key}.{name}", root) for name, item in value.items()}
    if get_origin(bare) is list and isinstance(value, list):
        child = get_args(bare)[0]
        return [_value(child, item, f"{key}.{index}", root) for index, item in enumerate(value)]
    return _scalar(bare, value, key)


def _scalar(hint: Any, value: Any, key: str) -> Any:
    """Return a checked number, text, truth value or enum member; bool is no number, 2.0 is no whole number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, Enum):
        if isinstance(value, str) and value in {member.value for member in hint}:
            return hint(value)
    elif hint is float and is_number:
        return float(value)
    elif (hint is int and is_number and isinstance(value, int)) or (hint is bool and isinstance(value, bool)):
        return value
    elif hint is str and (isinstance(value, str) or (is_number and isinstance(value, int))):
        return str(value)  # run.name=7 is a text
    raise wrong_type(key, value)


def _dataclass(hint: Any, value: Any, key: str, root: Mapping[str, Any]) -> Any:
    if not isinstance(value, Mapping):
        raise wrong_type(key, value)
    prefix = f"{key}." if key else ""
    hints = get_type_hints(hint)
    for name, child in value.items():
        if name not in hints:
            raise unknown_key(f"{prefix}{name}", child, known_keys(root))
    given = {name: child for name, child in value.items() if child != _UNSET}
    for field in fields(hint):
        if field.name not in given and field.default is MISSING and field.default_factory is MISSING:
            missing = f"{prefix}{field.name}"
            expected = describe(type_of(missing))
            raise ConfigError(missing, _UNSET, f"has no value; it takes {expected}", f"give {missing}=…")
    return hint(**{name: _value(hints[name], child, f"{prefix}{name}", root) for name, child in given.items()})
