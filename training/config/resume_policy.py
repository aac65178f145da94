"""What may be another when a run goes on: one table over all keys, and the comparison of two starts. Pure.

free     where, how visibly, how fast or under which layout a run computes; never what, beyond rounding
guarded  what is trained from now on; may change on purpose, with a matching entry of resume.allow
frozen   what the weights and the steps so far belong to; never changes within a run

`config_hash` covers everything that is not free, so the two cannot disagree.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from training.config.keys import known_keys, nearest
from training.config.schema import RunConfig
from training.config.typed import to_plain, with_defaults
from training.errors import ConfigError


class ChangeKind(StrEnum):
    """Whether a key's value may change between two starts of a run."""

    free = "free"
    guarded = "guarded"
    frozen = "frozen"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One value that is another than in an earlier start."""

    key: str
    """Dotted path; a section if all of it is new, gone or in another order."""
    old: Any
    """Plain value of the earlier start; None if it had none."""
    new: Any
    """Plain value now; None if there is none."""
    kind: ChangeKind


POLICY: tuple[tuple[str, ChangeKind, str], ...] = (
    ("run.id", ChangeKind.free, ""),
    ("run.root", ChangeKind.free, ""),
    ("run.until", ChangeKind.free, ""),
    ("resume", ChangeKind.free, ""),
    ("parallel", ChangeKind.free, ""),
    ("stages.*.parallel", ChangeKind.free, ""),
    ("stages.*.micro_batch_sequences", ChangeKind.free, ""),
    ("stages.*.gate", ChangeKind.free, ""),
    ("stages.*.eval_every_steps", ChangeKind.free, ""),
    ("eval.at_start", ChangeKind.free, ""),
    ("eval.contamination", ChangeKind.free, ""),
    ("eval.silent_seconds", ChangeKind.free, ""),
    ("data.prepared_root", ChangeKind.free, ""),
    ("data.prepare", ChangeKind.free, ""),
    ("data.num_workers", ChangeKind.free, ""),
    ("checkpoint", ChangeKind.free, ""),
    ("fault_tolerance.recovery", ChangeKind.guarded, ""),
    ("fault_tolerance", ChangeKind.free, ""),
    ("reporting", ChangeKind.free, ""),
    ("cluster", ChangeKind.free, ""),
    ("model.dropout", ChangeKind.guarded, ""),
    ("model.experts.bias_update_rate", ChangeKind.guarded, ""),
    ("model.experts.balance_loss", ChangeKind.guarded, ""),
    ("model.experts.balance_scope", ChangeKind.guarded, ""),
    ("model.experts.z_loss", ChangeKind.guarded, ""),
    ("model.experts.capacity_factor", ChangeKind.guarded, ""),
    ("model", ChangeKind.frozen, "the weights belong to that architecture"),
    ("data.tokenizer", ChangeKind.frozen, "the weights belong to that tokenizer"),
    ("data.tokenizer_vocab_size", ChangeKind.frozen, "the weights belong to that tokenizer"),
    ("data.end_of_document_token", ChangeKind.frozen, "the weights belong to that tokenizer"),
    ("optimizer.kind", ChangeKind.frozen, "the optimizer's state in checkpoints belongs to it"),
    ("run.name", ChangeKind.frozen, "it is the run's identity"),
    ("run.seed", ChangeKind.frozen, "initial weights, sample order and dropout masks follow from it"),
    ("init_from", ChangeKind.frozen, "the first training stage has started already"),
)
"""(pattern, kind, why it is frozen); the first row that covers a key counts, and what none covers is guarded."""

_SWITCHES = {"model.experts.bias_update_rate": "with 0 routers have no bias: the weights belong to one or the other"}
"""Numbers that may change, but neither from nor to 0 -> why."""
_ORDER = "training stages may neither go, nor change names or places; a new one at the end is the one thing allowed"
_COMPLETE = "that training stage is complete, so nothing would be trained by the new value"
_NEW_RUN = "a new run (resume=never), from this run's weights with init_from=checkpoint:DIR where they fit the model"


def kind_of(key: str) -> ChangeKind:
    """Return whether a dotted key may change between two starts."""
    return _rule(key)[0]


def covers(pattern: str, key: str) -> bool:
    """Return whether a pattern names a key or a section around it; wildcards stand for (parts of) one name each."""
    wanted, given = pattern.split("."), key.split(".")
    return len(wanted) <= len(given) and all(map(fnmatchcase, given, wanted))


def numbers_of(config: RunConfig) -> dict[str, Any]:
    """Return the part of a config, as plain dictionaries, that is not free: what determines a run's numbers."""
    return _without_free(to_plain(config), "")


def check_allow(config: RunConfig) -> None:
    """Check that every entry of resume.allow names something.

    Raises:
        ConfigError: one matches no key.
    """
    known = known_keys(to_plain(config))
    for entry in config.resume.allow:
        if any(covers(entry, key) for key in known):
            continue
        wanted = entry.removesuffix(".*")
        names = wanted.split(".")
        same_depth = [key.split(".") for key in known if key.count(".") == wanted.count(".")]
        masked = [".".join("*" if a == "*" else b for a, b in zip(names, key, strict=True)) for key in same_depth]
        close = nearest(wanted, masked if "*" in names else known)
        remedy = f"did you mean resume.allow=[{close[0]}]?" if close else "conf/README.md lists all keys"
        raise ConfigError("resume.allow", entry, "no key matches it", remedy)


def compare(saved: Mapping[str, Any], new: RunConfig, *, complete: Collection[str] = ()) -> list[Change]:
    """Return what is another than in an earlier start, in the order of the schema; all of it may be.

    `resume` itself is left out: it says how a start came about, nothing about the run.

    Args:
        saved: `to_plain(config)` of the earlier start. A key that its version of Autarky did not know had its default;
            one that this version does not know counts as a change to None.
        new: the config of this start; its resume.allow counts.
        complete: training stages that are trained to their end: what they were trained with is frozen.

    Raises:
        ConfigError: a frozen value changed, or a guarded one that resume.allow does not name.
    """
    changes = [
        Change(key=key, old=old, new=now, kind=_rule_of_change(key, old, now, complete)[0])
        for key, old, now in _differences(with_defaults(saved), to_plain(new), "")
        if not covers("resume", key)
    ]
    if frozen := [change for change in changes if change.kind is ChangeKind.frozen]:
        raise _frozen(frozen, complete)
    allow = new.resume.allow
    guarded = [change for change in changes if change.kind is ChangeKind.guarded]
    if refused := [change for change in guarded if not any(covers(entry, change.key) for entry in allow)]:
        raise _guarded(refused, new)
    return changes


def _rule(key: str, complete: Collection[str] = ()) -> tuple[ChangeKind, str]:
    """Return the kind of a key and why it is frozen."""
    if key == "stages":  # the names and their order; entries have keys of their own
        return ChangeKind.frozen, _ORDER
    for pattern, kind, why in POLICY:
        if covers(pattern, key):
            return kind, why
    if any(covers(f"stages.{name}", key) for name in complete):
        return ChangeKind.frozen, _COMPLETE
    return ChangeKind.guarded, ""


def _rule_of_change(key: str, old: Any, new: Any, complete: Collection[str]) -> tuple[ChangeKind, str]:
    """Return the kind of a key's change from one value to another, and why it is frozen."""
    if key in _SWITCHES and bool(old) != bool(new):
        return ChangeKind.frozen, _SWITCHES[key]
    return _rule(key, complete)


def _without_free(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    kept = {}
    for name, value in section.items():
        key = f"{prefix}{name}"
        if kind_of(key) is not ChangeKind.free:
            kept[name] = _without_free(value, f"{key}.") if isinstance(value, Mapping) else value
    return kept


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old, new) of values that differ; what is missing counts as None, the order of entries counts."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if old != new:
            yield key, old, new
        return
    if key == "stages" and list(new)[: len(old)] != list(old):
        yield key, list(old), list(new)
        return
    if list(old) != list(new) and sorted(old) == sorted(new) and key:
        yield key, list(old), list(new)
    for name in dict.fromkeys([*new, *old]):
        yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)


def _frozen(changes: list[Change], complete: Collection[str]) -> ConfigError:
    first = changes[0]
    why = _rule_of_change(first.key, first.old, first.new, complete)[1]
    trains_on = f", a new training stage at the end (resume.allow=[stages.NAME]) trains on, or start {_NEW_RUN}"
    remedy = f"give {_shown(first.old)} to go on" + (
        trains_on if first.key.startswith("stages") else f", or start {_NEW_RUN}"
    )
    reason = f"the earlier start had {_shown(first.old)}, and {why}{_others(changes)}"
    return ConfigError(first.key, _shown(first.new), reason, remedy)


def _guarded(changes: list[Change], config: RunConfig) -> ConfigError:
    first, known = changes[0], set(known_keys(to_plain(config)))
    entries = dict.fromkeys([*config.resume.allow, *(_nearest_known(change.key, known) for change in changes)])
    return ConfigError(
        first.key,
        _shown(first.new),
        f"the earlier start had {_shown(first.old)}, and this changes what is trained{_others(changes)}",
        f"resume.allow=[{','.join(entries)}] changes it on purpose; without it, give {_shown(first.old)} to go on as "
        "before, or start a new run (resume=never)",
    )


def _nearest_known(key: str, known: set[str]) -> str:
    """Return the key, or the closest section around it that this version knows: what resume.allow takes for it."""
    while key and key not in known:
        key = key.rpartition(".")[0]
    return key or "*"


def _others(changes: list[Change]) -> str:
    shown = [f"{change.key}: {_shown(change.old)} there, {_shown(change.new)} here" for change in changes[1:8]]
    more = [f"{len(changes) - 8} more"] if len(changes) > 8 else []
    return f" (also {'; '.join([*shown, *more])})" if shown else ""


def _shown(value: Any) -> str:
    """Return a plain value as it is typed on a command line, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
