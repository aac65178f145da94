"""Whether the settings of the cluster fit its launcher, and are words that may stand in a command line."""

import re

from training.config.cluster_schema import HostfileConfig
from training.config.schema import Launcher, RunConfig
from training.config.secret_names import is_secret_variable
from training.errors import ConfigError

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._/@%+,:=-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PLAIN_VALUE = re.compile(r"[\w@%+=:,./^ -]*", re.ASCII)
"""Of an environment variable: what the quoting of DeepSpeed's runner, plain double quotes, leaves alone in a shell."""


def check_cluster(config: RunConfig) -> None:
    """Check that the launcher has what it needs, and that nothing of it can be taken for something else.

    Raises:
        ConfigError: a section is missing or superfluous, or a value does not fit into a command line.
    """
    cluster = config.cluster
    _check_cold_starts(cluster.reliability.cold_start_seconds)
    if cluster.launcher is Launcher.hostfile:
        if cluster.hostfile is None:
            remedy = "cluster.hostfile.path=FILE"
            raise ConfigError("cluster.hostfile", None, "launcher=hostfile needs the hosts", remedy)
        _check_hostfile(cluster.hostfile)
        for name, value in cluster.environment.items():
            if not PLAIN_VALUE.fullmatch(value):
                reason = "the shells on the way to the hosts would change it"
                remedy = "letters, digits, blanks and @%+=:,./^_- only; set it in the hosts' own shell profiles"
                raise ConfigError(f"cluster.environment.{name}", ascii(value), reason, remedy)
    elif cluster.hostfile is not None:
        reason = f"launcher={cluster.launcher} would ignore it"
        raise ConfigError("cluster.hostfile", "…", reason, "cluster.launcher=hostfile, or cluster.hostfile=null")


def _check_cold_starts(points: list[list[float]]) -> None:
    devices = [point[0] for point in points if len(point) == 2]
    if len(devices) < max(1, len(points)) or devices != sorted(set(devices)):
        key = "cluster.reliability.cold_start_seconds"
        raise ConfigError(key, points, "it needs pairs [devices, seconds], by rising devices", f"{key}=[[16384,200.0]]")


def _check_hostfile(hostfile: HostfileConfig) -> None:
    section = "cluster.hostfile"
    for name, value in (("master_addr", hostfile.master_addr), ("interface", hostfile.interface)):
        if value is not None and not _WORD.fullmatch(value):
            raise ConfigError(f"{section}.{name}", value, "has letters, digits, '.', '-', '_' and ':'", "leave it out")
    if hostfile.ssh_config is not None and not _PLAIN_PATH.fullmatch(hostfile.ssh_config):
        reason = "pdsh cuts ssh's options at spaces, and quotes mean nothing to it"
        raise ConfigError(f"{section}.ssh_config", hostfile.ssh_config, reason, "give a path of plain characters")
    for word in hostfile.launcher_args:
        if not word or not word.isprintable():
            reason = "is empty or holds control characters"
            raise ConfigError(f"{section}.launcher_args", repr(word), reason, "one option or value per entry")
    for variable in hostfile.export:
        if not _VARIABLE.fullmatch(variable):
            reason = "is no name of an environment variable"
            raise ConfigError(f"{section}.export", variable, reason, "give names; values are taken from here")
        if is_secret_variable(variable):
            reason = "its value would be seen in the process list of every node"
            remedy = "leave it out; keep secrets in files that the ranks read (wandb: ~/.netrc)"
            raise ConfigError(f"{section}.export", variable, reason, remedy)
