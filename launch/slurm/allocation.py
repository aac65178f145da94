"""What Slurm gave this start of a job: its nodes, its number, how often it was started."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from launch.slurm.commands import host_names
from training.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """The nodes of a job from now until it ends."""

    job: str
    """Number of the job; every task of an array has its own."""
    name: str
    """How Slurm's commands are told this very job: a task of an array is ARRAY_TASK, since the number of one of the
    tasks is that of the array as well and would mean all of them."""
    restarts: int
    """How often the job was started before."""
    nodes: tuple[str, ...]
    """All nodes, in Slurm's order."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the allocation that a batch script runs in.

        Raises:
            ConfigError: there is none.
        """
        try:
            job, node_list = environment["SLURM_JOB_ID"], environment["SLURM_JOB_NODELIST"]
        except KeyError as error:
            reason = f"{error.args[0]} is not set: this is no job of Slurm"
            raise ConfigError(
                "launch.slurm.job", "", reason, "it is for batch scripts; launch.submit makes them"
            ) from None
        name = job
        if "SLURM_ARRAY_JOB_ID" in environment:
            name = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
        return cls(
            job=job,
            name=name,
            restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
            nodes=tuple(host_names(node_list)),
        )
