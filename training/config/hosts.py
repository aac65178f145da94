"""Which hosts a file names: one `NAME slots=N` a line, as DeepSpeed and Open MPI read it, but strictly.

DeepSpeed takes any word for a name and pastes it into a remote shell's command line; here a name is a name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.config.cluster_schema import HostfileConfig
from training.config.keys import nearest
from training.config.schema import ClusterConfig
from training.errors import ConfigError
from training.plain_files import read_text

_KEY = "cluster.hostfile.path"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})")
_LINE = re.compile(r"(?P<name>\S+)[ \t]+slots=(?P<slots>\S+)")
_SHAPE = "one line per host: NAME slots=N; NAME has letters, digits, '.', '-' and '_', a letter or digit first"
_MOST_SLOTS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """One line of a hostfile."""

    name: str
    slots: int
    """Ranks that it can take."""
    line: int
    """Its place in the file, counted from 1."""


def chosen_hosts(cluster: ClusterConfig) -> list[Host]:
    """Return the hosts that a run uses, each with as many slots as the run has processes per node.

    Raises:
        ConfigError: the file is not there, a line is none, or it has fewer hosts or slots than the config wants.
    """
    assert cluster.hostfile is not None
    hosts = listed_hosts(cluster.hostfile)
    path = cluster.hostfile.path
    if cluster.num_nodes > len(hosts):
        reason = f"{path} lists {_counted(len(hosts), 'host')} to use"
        raise ConfigError("cluster.num_nodes", cluster.num_nodes, reason, f"cluster.num_nodes={len(hosts)} works")
    used, wanted = hosts[: cluster.num_nodes], cluster.processes_per_node
    least = min(used, key=lambda host: host.slots)
    if wanted > least.slots:
        raise ConfigError(
            "cluster.processes_per_node",
            wanted,
            f"{path}, line {least.line}: {least.name} has {_counted(least.slots, 'slot')}",
            f"cluster.processes_per_node={least.slots} works",
        )
    return [replace(host, slots=wanted) for host in used]


def listed_hosts(hostfile: HostfileConfig) -> list[Host]:
    """Return the hosts of the file that `include` and `exclude` leave, in the file's order.

    Raises:
        ConfigError: the file cannot be read, a line is none, slots differ, or a name is not in the file.
    """
    try:
        text = read_text(Path(hostfile.path), largest_bytes=2**24)
    except OSError as error:
        raise ConfigError(_KEY, hostfile.path, error.strerror or str(error), f"write it: {_SHAPE}") from None
    except ValueError as error:
        raise ConfigError(_KEY, hostfile.path, str(error), f"write it as a text file: {_SHAPE}") from None
    hosts = parse(text, hostfile.path)
    _check_named(hosts, hostfile.include, "cluster.hostfile.include")
    _check_named(hosts, hostfile.exclude, "cluster.hostfile.exclude")
    wanted = hostfile.include or [host.name for host in hosts]
    left = [host for host in hosts if host.name in wanted and host.name not in hostfile.exclude]
    if not left:
        raise ConfigError("cluster.hostfile.exclude", hostfile.exclude, "leaves no host", "exclude fewer, or none")
    _check_equal_slots(left, hostfile.path)
    return left


def parse(text: str, path: str) -> list[Host]:
    """Return the hosts of a hostfile's text; empty lines and comments (#) are skipped.

    Raises:
        ConfigError: a line is none; the message names it.
    """
    hosts: list[Host] = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.partition("#")[0].strip(" \t\r")
        if content:
            hosts.append(_host(content, f"{path}, line {number}", number))
    if not hosts:
        raise ConfigError(_KEY, path, "names no host", _SHAPE)
    first: dict[str, int] = {}
    for host in hosts:
        if host.name in first:
            reason = f"line {host.line}: {host.name} stands in line {first[host.name]} already"
            raise ConfigError(_KEY, path, reason, f"keep one of the two, with all its slots: {host.name} slots=N")
        first[host.name] = host.line
    return hosts


def to_text(hosts: Sequence[Host]) -> str:
    """Return the content of a hostfile with these hosts."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def _host(content: str, place: str, number: int) -> Host:
    path, _, where = place.rpartition(", ")
    match = _LINE.fullmatch(content)
    if match is None:
        raise ConfigError(_KEY, path, f"{where}: {content!r} is not NAME slots=N", _SHAPE)
    name, slots = match["name"], match["slots"]
    if not _NAME.fullmatch(name):
        remedy = f"{_SHAPE}; users and ports belong into cluster.hostfile.ssh_config"
        raise ConfigError(_KEY, path, f"{where}: {name!r} is no host name", remedy)
    if not re.fullmatch(r"[0-9]{1,4}", slots) or not 1 <= int(slots) <= _MOST_SLOTS:
        reason = f"{where}: slots={slots} is no number of processes"
        raise ConfigError(_KEY, path, reason, f"{name} slots=N with N from 1 to {_MOST_SLOTS}")
    return Host(name=name, slots=int(slots), line=number)


def _check_named(hosts: Sequence[Host], names: Sequence[str], key: str) -> None:
    known = [host.name for host in hosts]
    for name in names:
        if name not in known:
            close = nearest(name, known)
            remedy = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(known[:5])}"
            raise ConfigError(key, name, "the hostfile has no such host", remedy)


def _check_equal_slots(hosts: Sequence[Host], path: str) -> None:
    first = hosts[0]
    for host in hosts[1:]:
        if host.slots != first.slots:
            reason = (
                f"line {host.line}: {host.name} has {_counted(host.slots, 'slot')}, {first.name} in line {first.line} "
                f"has {first.slots}: a layout needs equal nodes"
            )
            raise ConfigError(_KEY, path, reason, f"slots={min(host.slots, first.slots)} on every line works")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
