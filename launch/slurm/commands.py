"""Slurm's own commands: asked with a time limit, and their refusals passed on in Slurm's words."""

import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence

from training.errors import AutarkyError, ConfigError, ExitCode

_LIMIT_SECONDS = 60.0
"""A busy controller may take its time; Slurm's MessageTimeout is 10 s, and clients try again by themselves."""
_TRIES = 9
"""With pauses of 0.2, 0.4, 0.8 … s between them: 51 s in all, which a controller's failover may take."""
_FIELD = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z:/]*)=(\S*)")


class SlurmError(AutarkyError):
    """A command of Slurm was refused, or did not answer."""

    exit_code = ExitCode.FAILED


def slurm(*words: str, environment: Mapping[str, str] | None = None) -> str:
    """Return the output of one of Slurm's commands.

    Raises:
        ConfigError: this machine has no such command.
        SlurmError: it failed.
    """
    try:
        done = subprocess.run(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        reason = f"there is no {words[0]} on this machine"
        remedy = "submit from a login node of the Slurm cluster, or start here with cluster=local"
        raise ConfigError("cluster.launcher", "slurm", reason, remedy) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} did not answer within {_LIMIT_SECONDS:.0f} s\n  -> try again; sinfo") from None
    if done.returncode:
        said = done.stderr.strip() or f"signal or exit code {done.returncode}"
        raise SlurmError(f"{' '.join(words)}\n{said}\n  -> Slurm refused; correct what it names")
    return done.stdout.strip()


def slurm_insistently(*words: str) -> str:
    """Return the output of a command that is tried again, with pauses, when it fails.

    Raises:
        SlurmError: it failed each time.
    """
    for attempt in range(_TRIES - 1):
        try:
            return slurm(*words)
        except SlurmError:
            time.sleep(0.2 * 2**attempt)
    return slurm(*words)


def fields_of_job(job: str) -> dict[str, str]:
    """Return what `scontrol show job` says, by field; {} if Slurm does not know the job (any more)."""
    try:
        return dict(_FIELD.findall(slurm("scontrol", "--oneliner", "show", "job", job)))
    except SlurmError:
        return {}


def host_names(node_list: str) -> list[str]:
    """Return the nodes of Slurm's short form (node[1-3,7]), in order."""
    return slurm("scontrol", "show", "hostnames", node_list).split()


def shown(words: Sequence[str]) -> str:
    """Return a command as it could be typed, one option a line."""
    return " \\\n    ".join(map(shlex.quote, words))
