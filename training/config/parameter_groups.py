"""Parameters -> the optimizer's groups, by canonical name. The engines make them so, the rehearsal expects them so."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from training.config.optimizer_schema import OptimizerConfig, OptimizerKind
from training.config.parameter_names import BLOCKS, ROUTER

_Parameter = TypeVar("_Parameter")


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """What decides about a parameter's group."""

    name: str
    """Canonical name."""
    is_matrix: bool
    """Whether it has two dims or more."""
    is_shared: bool
    """Whether another pipeline stage holds it too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSettings:
    """What all parameters of one group of the optimizer are trained with."""

    lr_ratio: float
    """Learning rate as a multiple of the step's."""
    weight_decay: float
    """Decoupled."""
    uses_muon: bool = False
    """Else AdamW."""


def grouped(
    config: OptimizerConfig, parameters: Iterable[_Parameter], describe: Callable[[_Parameter], Named]
) -> list[tuple[GroupSettings, list[_Parameter]]]:
    """Return the optimizer's groups in order, each with its parameters in theirs; none is empty.

    Matrices that several pipeline stages hold form groups of their own: ZeRO cuts every group into equal ranges, so
    each of those stages gets the same ranges of them. They come first; then the groups of the config, and what is in
    none of them; in each, matrices before vectors, and Muon's before AdamW's.

    Args:
        config: section `optimizer`.
        parameters: of one engine.
        describe: says what decides about one of them.
    """
    places = {name: place for place, name in enumerate(config.groups)}
    found: dict[tuple[bool, int, bool, bool], tuple[GroupSettings, list[_Parameter]]] = {}
    for parameter in parameters:
        named = describe(parameter)
        group = group_of(config, named.name)
        place = len(places) if group is None else places[group]
        key = (not named.is_shared, place, not named.is_matrix, not _uses_muon(config, named))
        found.setdefault(key, (_settings(config, group, named), []))[1].append(parameter)
    return [found[key] for key in sorted(found)]


def group_of(config: OptimizerConfig, name: str) -> str | None:
    """Return the first group that names a parameter, or None."""
    for group, content in config.groups.items():
        if any(fnmatchcase(name, pattern) for pattern in content.parameters):
            return group
    return None


def unmatched(config: OptimizerConfig, names: Sequence[str]) -> list[tuple[str, int, str]]:
    """Return (group, place of the pattern in it, pattern) of all patterns that give their group none of the names.

    A pattern that an earlier group leaves nothing to is one of them.
    """
    mine = {name: group_of(config, name) for name in names}
    return [
        (group, place, pattern)
        for group, content in config.groups.items()
        for place, pattern in enumerate(content.parameters)
        if not any(mine[name] == group and fnmatchcase(name, pattern) for name in names)
    ]


def _settings(config: OptimizerConfig, group: str | None, named: Named) -> GroupSettings:
    uses_muon = _uses_muon(config, named)
    ratio = config.muon.lr / config.lr if uses_muon else 1.0
    decay = config.muon.weight_decay if uses_muon else config.weight_decay if named.is_matrix else 0.0
    content = None if group is None else config.groups[group]
    if content is not None:
        ratio *= content.lr_ratio
        decay = decay if content.weight_decay is None else content.weight_decay
    return GroupSettings(lr_ratio=ratio, weight_decay=decay, uses_muon=uses_muon)


def _uses_muon(config: OptimizerConfig, named: Named) -> bool:
    """Return whether Muon updates a parameter: a hidden matrix, which a router's weights of experts are not."""
    is_hidden = named.name.startswith(BLOCKS) and not named.name.endswith(ROUTER)
    return config.kind is OptimizerKind.muon and named.is_matrix and is_hidden
