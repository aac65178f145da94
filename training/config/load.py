"""Where YAML values and typed dataclasses meet: compose once, check, freeze; ranks only load what was frozen."""

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from training.config.checks import check, check_used
from training.config.hosts import chosen_hosts, listed_hosts
from training.config.initial_weights import absolute_initial_weights, check_initial_weights_exist
from training.config.keys import nearest, type_of
from training.config.overrides import (
    CONF_DIRECTORY,
    apply,
    check_group_choice,
    is_group_choice,
    parse,
    to_container,
)
from training.config.resume_policy import numbers_of
from training.config.schema import Launcher, Resume, RunConfig
from training.config.secret_checks import refuse_resolvers
from training.config.typed import to_plain, to_run_config
from training.durable_files import write_durably
from training.errors import ConfigError
from training.plain_files import read_yaml

FROZEN_NAME = "config.yaml"


def compose(overrides: Sequence[str], *, world: tuple[int, int] | None = None, to_plan: bool = False) -> RunConfig:
    """Return the checked config of a command line; relative paths in it count from the current directory.

    Args:
        overrides: `key=value` and `group=choice`, in Hydra's grammar.
        world: (num_nodes, processes_per_node) as a launcher started them: stronger than any YAML file, weaker than
            an explicit override, so that the caller can tell the user when the two differ.
        to_plan: it is not to be started, so it may be what no engine can run yet, and data need not be there.

    Raises:
        ConfigError: a key, a value or a combination is impossible.
    """
    parsed = parse(overrides)
    config = _composed(parsed, world)
    check(config, to_plan=to_plan)
    if (
        config.resume.mode is not Resume.must and not to_plan
    ):  # a run that goes on has no more need of what it started from
        check_initial_weights_exist(config)
    texts = [str(override.input_line) for override in parsed if override.package is None]
    check_used(config, {key: value for key, _, value in (text.lstrip("+~").partition("=") for text in texts)})
    return config


def compose_unchecked(overrides: Sequence[str]) -> RunConfig:
    """Return what a command line composes to, typed but not checked: the start of one that is still to be added to.

    Raises:
        ConfigError: there is no such key, or a value has the wrong type.
    """
    return _composed(parse(overrides), None)


def load_frozen(directory: Path) -> RunConfig:
    """Return the config a run directory was frozen with.

    Raises:
        ConfigError: there is none, or it was changed into something impossible.
    """
    path = directory / FROZEN_NAME
    try:
        values = read_yaml(path)
    except OSError as error:
        reason = f"cannot read {FROZEN_NAME}: {error.strerror}"
        remedy = "give a directory that launch.submit made, or overrides such as experiment=demo"
        raise ConfigError("run directory", directory, reason, remedy) from error
    except ValueError as error:
        raise ConfigError(FROZEN_NAME, path, str(error), "restore it, or start a new run") from error
    if not isinstance(values, dict):
        raise ConfigError(FROZEN_NAME, path, "holds no sections", "restore it, or start a new run")
    config = to_run_config(values)
    check(config)
    return config


def with_resume(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a frozen config with resume.mode, resume.allow and run.until as a command line sets them; nothing else.

    Raises:
        ConfigError: an override speaks of another key, or has an impossible value.
    """
    plain = to_plain(config)
    section = OmegaConf.create({"resume": plain["resume"], "run": plain["run"]})
    for override in parse(overrides):
        if override.key_or_group.split(".")[0] != "resume" and override.key_or_group != "run.until":
            key, _, value = str(override.input_line).partition("=")
            raise ConfigError(
                key,
                value,
                "a run directory's config is frozen",
                f"give only resume={'|'.join(Resume)}, resume.allow=[…] and run.until=… beside it, or the run's "
                f"overrides instead of the directory, with this one, run.id={config.run.id} and resume=auto",
            )
        apply(section, override)
    changed = to_run_config({**plain, **to_container(section)})
    check(changed)
    return changed


def freeze(config: RunConfig, directory: Path) -> Path:
    """Write config.yaml of a run directory, whole or not at all, and return its path."""
    path = directory / FROZEN_NAME
    write_durably(path, to_yaml(config))
    return path


def to_yaml(config: RunConfig) -> str:
    """Return the config as YAML with every value spelt out; `load_frozen` reads the same config from it."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, width=120)


def config_hash(config: RunConfig) -> str:
    """Return 12 hex digits over all that is not free to change within a run, the order of training stages included."""
    text = json.dumps(numbers_of(config), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _composed(parsed: Sequence[Override], world: tuple[int, int] | None) -> RunConfig:
    composed = _compose_groups([override for override in parsed if is_group_choice(override)])
    if world is not None:
        OmegaConf.update(composed, "cluster.num_nodes", world[0])
        OmegaConf.update(composed, "cluster.processes_per_node", world[1])
    for override in parsed:
        if not is_group_choice(override):
            apply(composed, override)
    refuse_resolvers(to_container(composed))
    try:
        values = to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "config")
        raise ConfigError(key, "${…}", str(error).splitlines()[0], "write the value itself") from None
    config = _make_paths_absolute(to_run_config(values), Path.cwd())
    if world is None:
        config = _sized_by_hostfile(config, {str(override.key_or_group) for override in parsed})
    return config


def _sized_by_hostfile(config: RunConfig, given: Collection[str]) -> RunConfig:
    """Return the config with the nodes and processes that its hostfile has, where these keys are not given."""
    cluster = config.cluster
    if cluster.launcher is not Launcher.hostfile or cluster.hostfile is None:
        return config
    hosts = listed_hosts(cluster.hostfile)
    if "cluster.num_nodes" not in given:
        cluster = replace(cluster, num_nodes=len(hosts))
    if "cluster.processes_per_node" not in given:
        cluster = replace(cluster, processes_per_node=hosts[0].slots)
    chosen_hosts(cluster)
    return replace(config, cluster=cluster)


def _compose_groups(choices: Sequence[Override], *, return_hydra: bool = False) -> DictConfig:
    for choice in choices:
        if not choice.is_delete():
            check_group_choice(choice)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONF_DIRECTORY), version_base="1.3"):
            texts = [str(choice.input_line) for choice in choices]
            return hydra_compose("config", texts, return_hydra_config=return_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise _composition_error(choices, error) from None


def _composition_error(choices: Sequence[Override], error: Exception) -> ConfigError:
    """Return the error of a group choice at a place that has none (`parallel@stages.pretrin.parallel=zero1`)."""
    reason = " ".join(str(error).split())
    for choice in choices:
        place = choice.get_key_element()
        if choice.package is None or place not in reason:
            continue
        others = [other for other in choices if other is not choice]
        known = [str(name) for name in _compose_groups(others, return_hydra=True).hydra.runtime.choices]
        close = nearest(place, [name for name in known if name.startswith(f"{choice.key_or_group}@")])
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        add = f"+{choice.input_line} would add the choice there" if type_of(str(choice.package)) else ""
        remedy = hint + add or "conf/README.md lists the keys"
        return ConfigError(place, choice.get_value_string(), "no group is chosen at this place", remedy)
    given = " ".join(str(choice.input_line) for choice in choices)
    return ConfigError("overrides", given, reason, "conf/README.md lists the groups and their choices")


def _make_paths_absolute(config: RunConfig, directory: Path) -> RunConfig:
    """Anchor relative paths once, at the launch directory: ranks may run anywhere."""

    def absolute(path: str) -> str:
        return os.path.abspath(directory / Path(path).expanduser())

    sources = {
        name: replace(source, path=absolute(source.path)) if source.kind.reads_files and source.path else source
        for name, source in config.data.sources.items()
    }
    fast_root = config.checkpoint.fast_root
    cluster = replace(config.cluster, calibration=config.cluster.calibration and absolute(config.cluster.calibration))
    if (hostfile := cluster.hostfile) is not None:
        ssh_config = hostfile.ssh_config and absolute(hostfile.ssh_config)
        cluster = replace(cluster, hostfile=replace(hostfile, path=absolute(hostfile.path), ssh_config=ssh_config))
    return replace(
        config,
        cluster=cluster,
        run=replace(config.run, root=absolute(config.run.root)),
        data=replace(
            config.data,
            sources=sources,
            tokenizer=config.data.tokenizer and absolute(config.data.tokenizer),
            prepared_root=absolute(config.data.prepared_root),
        ),
        checkpoint=replace(config.checkpoint, fast_root=fast_root and absolute(fast_root)),
        init_from=absolute_initial_weights(config.init_from, absolute),
    )
