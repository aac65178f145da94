"""Which rank a process is, under every launcher: what torch wants to be told, from what the launcher tells.

DeepSpeed's launcher, torchrun and accelerate set RANK and the rest themselves. MPI and Slurm have names of their own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from training.errors import ConfigError
from training.slurm_rendezvous import step_rendezvous

_SRUN = "srun"
_WHOLE = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Names:
    """What one launcher calls a process's place."""

    launcher: str
    rank: str
    world_size: str
    local_rank: str
    local_world_size: str
    only_with: str | None = None
    """A variable without which the others mean something else."""


_KNOWN = (
    # Open MPI before Slurm: inside a batch job mpirun's processes inherit SLURM_PROCID=0, all of them.
    _Names(
        launcher="Open MPI",
        rank="OMPI_COMM_WORLD_RANK",
        world_size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Names(
        launcher="MVAPICH",
        rank="MV2_COMM_WORLD_RANK",
        world_size="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        local_world_size="MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Names(
        launcher="MPICH or Intel MPI",
        rank="PMI_RANK",
        world_size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_world_size="MPI_LOCALNRANKS",
        only_with="MPI_LOCALRANKID",  # srun --mpi=pmi2 sets PMI_RANK too, and names no local rank
    ),
    # A batch script has SLURM_PROCID=0 too; only a process of a step has a step's id.
    _Names(
        launcher=_SRUN,
        rank="SLURM_PROCID",
        world_size="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
        local_world_size="SLURM_STEP_TASKS_PER_NODE",
        only_with="SLURM_STEP_ID",
    ),
)


def complete(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are missing: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, under srun MASTER_* too.

    Nothing is missing under launchers that speak torch's words, nor without any launcher: the process is alone.

    Raises:
        ConfigError: the launcher says which rank this is but not where all ranks meet, or something that is no number.
    """
    if "RANK" in environment:
        _check_rendezvous(environment, "the launcher")
        return {}
    for names in _KNOWN:
        if names.rank in environment and (names.only_with is None or names.only_with in environment):
            found = step_rendezvous(environment) if names.launcher == _SRUN else {}
            _check_rendezvous({**environment, **found}, names.launcher)
            return found | {
                "RANK": _number(environment, names.rank),
                "WORLD_SIZE": _number(environment, names.world_size),
                "LOCAL_RANK": _number(environment, names.local_rank),
                "LOCAL_WORLD_SIZE": _number(environment, names.local_world_size),
            }
    return {}


def _check_rendezvous(environment: Mapping[str, str], launcher: str) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise ConfigError(
                name,
                environment.get(name),
                f"{launcher} started this process as one of several, but did not say where they meet",
                "export MASTER_ADDR=<first host> MASTER_PORT=<free port> to all ranks (mpirun: -x MASTER_ADDR -x "
                "MASTER_PORT; deepspeed --launcher openmpi: two lines in ~/.deepspeed_env), or use launch.submit",
            )


def _number(environment: Mapping[str, str], name: str) -> str:
    # Slurm writes "2(x3)" for three nodes with two tasks each.
    value = environment.get(name, "")
    match = re.match(r"([0-9]{1,9})(\(x[0-9]+\))?$", value) if name.startswith("SLURM_") else _WHOLE.fullmatch(value)
    if match is None:
        remedy = "start all ranks by one launcher, equally many on every node"
        raise ConfigError(name, value, "is no number that a rank can go by", remedy)
    return match[1] if name.startswith("SLURM_") else value
