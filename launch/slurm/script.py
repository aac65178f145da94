"""The batch script: #SBATCH lines, one option each, and one command. All logic is in `launch.slurm.job`, in Python.

A value was checked when the config was (training/config/slurm_checks.py); here the finished text is checked once more,
line by line, so that nothing gets into a script that has not the shape of what belongs there.
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.config.schema import RunConfig
from training.config.slurm_checks import PATH
from training.config.slurm_schema import SlurmConfig
from training.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
_OPTION = re.compile(r"[a-z]+(-[a-z]+)*")
_TEXT = re.compile(r"[A-Za-z0-9._+@=:,/*|&()\[\]%-]{1,65536}")
"""No blank, quote, backslash or number sign: neither sbatch's parser nor a shell finds an end of the value in it."""
_HEAD = """\
#!/bin/bash
# Written by launch.submit. Everything that happens in this job is in launch/slurm/job.py.
"""
_BODY = """\
export PYTHONPATH={repository}${{PYTHONPATH:+:$PYTHONPATH}}
export PYTHONSAFEPATH=1
exec {command}
"""


def options(
    config: RunConfig,
    *,
    output: str,
    exclude: Sequence[str] = (),
    array_size: int | None = None,
    job_name: str | None = None,
) -> dict[str, str]:
    """Return what sbatch is asked for, by the long names of its options; "" for those that take no value.

    Args:
        config: a checked config with a section cluster.slurm.
        output: where the job's output goes, with Slurm's patterns (%j).
        exclude: nodes to leave out beside the config's.
        array_size: number of runs of a sweep; None for a single run.
        job_name: name of the job; None takes run.name.
    """
    cluster, slurm = config.cluster, section(config)
    excluded = list(dict.fromkeys([*slurm.exclude, *exclude]))
    limit = f"%{slurm.array_limit}" if slurm.array_limit else ""
    asked: dict[str, str | int | None] = {
        "job-name": job_name or config.run.name,
        "output": output,
        "open-mode": "append",
        "requeue": "",
        "signal": f"B:USR1@{slurm.signal_seconds}",
        "nodes": cluster.num_nodes + slurm.spare_nodes,
        "ntasks-per-node": cluster.processes_per_node,
        "cpus-per-task": cluster.threads_per_process,
        "gpus-per-node": slurm.gpus_per_node,
        "exclusive": "" if slurm.exclusive else None,
        "mem": 0 if slurm.exclusive else None,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "time": slurm.time_limit,
        "constraint": slurm.constraint,
        "exclude": ",".join(excluded) or None,
        "array": None if array_size is None else f"0-{array_size - 1}{limit}",
        **slurm.directives,
    }
    return {name: str(value) for name, value in asked.items() if value is not None}


def section(config: RunConfig) -> SlurmConfig:
    """Return the section cluster.slurm of a checked config with launcher=slurm."""
    assert config.cluster.slurm is not None
    return config.cluster.slurm


def job_command(directories: Sequence[Path], *, until: str | None = None) -> list[str]:
    """Return what the batch script starts: one run directory, or one per task of an array."""
    end = [] if until is None else [f"--until={until}"]
    return [sys.executable, "-m", "launch.slurm.job", *end, *map(str, directories)]


def render(asked: Mapping[str, str], command: Sequence[str], *, repository: Path = REPOSITORY) -> str:
    """Return the text of a batch script; the command finds the code in `repository`.

    Raises:
        ConfigError: an option, a value or a word of the command has characters that do not belong there.
    """
    lines = [_directive(name, value) for name, value in asked.items()]
    words = [_word(word) for word in command]
    body = _BODY.format(repository=_word(str(repository)), command=" \\\n    ".join([" ".join(words[:3]), *words[3:]]))
    return _HEAD + "".join(f"{line}\n" for line in lines) + body


def _directive(name: str, value: str) -> str:
    if not _OPTION.fullmatch(name) or (value and not _TEXT.fullmatch(value)):
        reason = "has characters that may not stand in a batch script"
        raise ConfigError(f"sbatch --{ascii(name)[1:-1]}", ascii(value), reason, "leave them out")
    if "%" in value and name not in ("output", "array"):
        raise ConfigError(f"sbatch --{name}", value, "has a % in it, which Slurm replaces", "leave it out")
    return f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}"


def _word(word: str) -> str:
    if not (PATH.fullmatch(word) or re.fullmatch(r"[A-Za-z0-9._=-]{1,256}", word)):
        reason = "has characters that may not stand in a batch script: letters, digits and ._+@=:,/- may"
        raise ConfigError(
            "batch script", ascii(word), reason, "move the run, the code or the interpreter to such a path"
        )
    return shlex.quote(word)
