"""What may be asked of Slurm, and which environment variables a cluster may set.

Every text that reaches a batch script is of few kinds of characters: none that a shell, sbatch's own parser of #SBATCH
lines or a file name pattern of Slurm (`%j`) takes for more than itself.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from training.config.keys import nearest
from training.config.schema import Launcher, RunConfig
from training.config.secret_names import is_secret_variable
from training.config.slurm_schema import SlurmChain, SlurmConfig
from training.errors import ConfigError

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A partition, an account, a node: no shell, no parser and no file name pattern sees more in it."""
PATH = re.compile(r"/[A-Za-z0-9._+@=:,/-]{0,1023}")
"""An absolute path in a batch script."""
TIME_LIMIT = re.compile(r"(?:([0-9]{1,3})-)?([0-9]{1,3}):([0-5][0-9]):([0-5][0-9])")
VALUE = re.compile(r"[A-Za-z0-9._+@=:,/*|&()\[\]-]{0,255}")
"""A value of sbatch: features may be joined by & and |, node lists have brackets. No blank, quote, $ or %."""

DIRECTIVES = (
    *("begin", "clusters", "comment", "contiguous", "core-spec", "cores-per-socket", "cpu-freq", "deadline"),
    *("delay-boot", "gpu-bind", "gpu-freq", "gres", "hint", "licenses", "mail-type", "mail-user", "mem", "mem-bind"),
    *("mem-per-cpu", "mem-per-gpu", "mincpus", "network", "nice", "nodelist", "power", "prefer", "priority"),
    *("reservation", "sockets-per-node", "switches", "thread-spec", "tmp", "use-min-nodes", "wait-all-nodes", "wckey"),
)
"""Options of sbatch that cluster.slurm.directives takes: those that choose resources, and not what is run."""

_IMAGE = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._+@:/#-]{0,511}")
_MOUNT = re.compile(r"/[A-Za-z0-9._+@=/-]{0,511}:/[A-Za-z0-9._+@=/-]{0,511}(:[a-z,+-]{1,64})?")
_CONSTRAINT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:*|&()\[\]-]{0,255}")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_VARIABLE_VALUE = re.compile(r"[ -~]{0,1024}")
_OURS = re.compile(
    r"RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|LOCAL_SIZE|MASTER_(ADDR|PORT)|DS_ACCELERATOR|OMP_NUM_THREADS"
    r"|PYTHON.*|LD_.*|PATH|HOME|BASH_ENV|SLURM_.*|SLURMD_.*|OMPI_.*|AUTARKY_.*|TORCH_EXTENSIONS_DIR"
)
"""Variables that Autarky or the launcher sets, or that would run other code."""
_SECONDS_EARLY = 60
"""Slurm sends the signal up to so long before it was asked to (sbatch(1), --signal)."""


def check_slurm(config: RunConfig) -> None:
    """Check where and how ranks start.

    Raises:
        ConfigError: the first thing that cannot be.
    """
    _check_until(config)
    for name, value in config.cluster.environment.items():
        _check_variable(name, value)
    slurm = config.cluster.slurm
    if config.cluster.launcher is not Launcher.slurm:
        return
    if slurm is None:
        reason = "there is no section cluster.slurm"
        raise ConfigError("cluster.launcher", "slurm", reason, "cluster=slurm has one; cluster.slurm={} takes defaults")
    _check_words(slurm)
    _check_time(slurm)
    _check_directives(slurm)
    _check_container(slurm)
    _check_paths(config)
    if slurm.chain is SlurmChain.stages and config.run.until is not None:
        reason = "a chain of jobs sets it for each of them"
        raise ConfigError("run.until", config.run.until, reason, "leave it out, or cluster.slurm.chain=run")


def seconds_of(time_limit: str) -> int:
    """Return a time limit (D-HH:MM:SS or HH:MM:SS) in seconds."""
    match = TIME_LIMIT.fullmatch(time_limit)
    assert match is not None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def check_node_names(key: str, names: Sequence[str]) -> None:
    """Check that every text is a node's name: Slurm's own short form with brackets is written out.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if not WORD.fullmatch(name):
            reason = "is no name of a node: letters, digits, '.', '_' and '-', a letter or digit first"
            raise ConfigError(key, name, reason, f"write every node's name: {key}=[node1,node2]")


def _check_until(config: RunConfig) -> None:
    until = config.run.until
    if until is not None and until not in config.stages:
        close = nearest(until, config.stages)
        remedy = f"did you mean run.until={close[0]}?" if close else f"training stages: {', '.join(config.stages)}"
        raise ConfigError("run.until", until, "there is no such training stage", remedy)


def _check_variable(name: str, value: str) -> None:
    key = f"cluster.environment.{name}"
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(key, value, "is no name of a variable: capitals, digits and '_'", "write it like NCCL_DEBUG")
    if _OURS.fullmatch(name):
        raise ConfigError(key, value, "Autarky or the launcher sets it", "leave it out")
    if is_secret_variable(name):
        reason = "looks like a secret, and the config is stored and shown in many places"
        raise ConfigError(key, "…", reason, f"export {name} in the shell that submits; it reaches the ranks")
    if not _VARIABLE_VALUE.fullmatch(value):
        reason = "may hold printable ASCII characters only, at most 1,024"
        raise ConfigError(key, ascii(value), reason, "leave out line ends and other control characters")


def _check_words(slurm: SlurmConfig) -> None:
    for name in ("partition", "account", "qos"):
        value = getattr(slurm, name)
        if value is not None and not WORD.fullmatch(value):
            reason = "may have letters, digits, '.', '_' and '-', at most 64, a letter or digit first"
            mended = re.sub(r"[^A-Za-z0-9._-]", "", value).lstrip("._-")[:64]
            raise ConfigError(f"cluster.slurm.{name}", ascii(value), reason, f"write {mended or 'its name'}")
    check_node_names("cluster.slurm.exclude", slurm.exclude)
    if slurm.constraint is not None and not _CONSTRAINT.fullmatch(slurm.constraint):
        reason = "features are names joined by & and |, without blanks"
        raise ConfigError("cluster.slurm.constraint", ascii(slurm.constraint), reason, "write it like h100&ib")


def _check_time(slurm: SlurmConfig) -> None:
    if slurm.time_limit is None:
        return
    if not TIME_LIMIT.fullmatch(slurm.time_limit):
        reason = "is no time limit"
        raise ConfigError("cluster.slurm.time_limit", ascii(slurm.time_limit), reason, "write D-HH:MM:SS or HH:MM:SS")
    left = seconds_of(slurm.time_limit) - slurm.signal_seconds - _SECONDS_EARLY
    if left <= 0:
        raise ConfigError(
            "cluster.slurm.time_limit",
            slurm.time_limit,
            f"cluster.slurm.signal_seconds={slurm.signal_seconds} (and up to {_SECONDS_EARLY} s that Slurm is early) "
            "leave no time to train",
            "give a longer time limit, or fewer signal_seconds",
        )


def _check_directives(slurm: SlurmConfig) -> None:
    for name, value in slurm.directives.items():
        key = f"cluster.slurm.directives.{name}"
        if name not in DIRECTIVES:
            close = nearest(name, DIRECTIVES)
            hint = f"did you mean {close[0]}? " if close else ""
            reason = "is no option of sbatch that may be added: Autarky sets it, or it is not about resources"
            raise ConfigError(key, ascii(value), reason, f"{hint}allowed: {', '.join(DIRECTIVES)}")
        if not VALUE.fullmatch(value):
            reason = "may have letters, digits and ._+@=:,/*|&()[]-, at most 255"
            raise ConfigError(key, ascii(value), reason, "leave the other characters out")
        if name == "mem" and slurm.exclusive:
            reason = "cluster.slurm.exclusive=true takes all memory of the node"
            raise ConfigError(key, value, reason, "leave it out, or cluster.slurm.exclusive=false")


def _check_container(slurm: SlurmConfig) -> None:
    container = slurm.container
    if container is None:
        return
    if not _IMAGE.fullmatch(container.image):
        reason = "is neither a path nor REGISTRY#IMAGE:TAG"
        remedy = "write it like nvcr.io#nvidia/pytorch:25.06-py3, or give the path of a squashfs file"
        raise ConfigError("cluster.slurm.container.image", ascii(container.image), reason, remedy)
    for mount in container.mounts:
        if not _MOUNT.fullmatch(mount):
            reason = "is not SOURCE:TARGET or SOURCE:TARGET:FLAGS, both absolute, without blanks"
            remedy = "write it like /scratch:/scratch or /opt/microsoft:/opt/microsoft:ro"
            raise ConfigError("cluster.slurm.container.mounts", ascii(mount), reason, remedy)
    if not WORD.fullmatch(container.python) and not PATH.fullmatch(container.python):
        reason = "is neither the name of a program nor an absolute path"
        raise ConfigError("cluster.slurm.container.python", ascii(container.python), reason, "python3 works")


def _check_paths(config: RunConfig) -> None:
    paths = {
        "run.root": config.run.root,
        "data.prepared_root": config.data.prepared_root,
        "checkpoint.fast_root": config.checkpoint.fast_root,
    }
    for key, path in paths.items():
        if path is not None and not PATH.fullmatch(str(Path.cwd() / path)):
            reason = "a path in a batch script has letters, digits and ._+@=:,/- only: no blank, quote, $ or %"
            raise ConfigError(key, ascii(path), reason, f"choose another folder with {key}=DIR")
