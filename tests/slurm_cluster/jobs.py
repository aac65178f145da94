"""Jobs on a throw-away cluster: submitted as a user does, watched by polling (`sbatch --wait` looks too seldom)."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.slurm_cluster.cluster import SlurmCluster, wait_until

REPOSITORY = Path(__file__).parents[2]
PYTHON = Path(sys.executable)
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"})
_SUBMIT_SECONDS = 60
_INHERITED = re.compile(r"SLURM_.*|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR|MASTER_PORT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """What `launch.submit` answered."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def jobs(self) -> list[str]:
        """Numbers of the submitted jobs."""
        return re.findall(r"^job (\d+):", self.stdout, re.MULTILINE)

    @property
    def directories(self) -> list[Path]:
        """The runs' directories."""
        return [Path(path) for path in re.findall(r"^run directory: (.*)$", self.stdout, re.MULTILINE)]


def launch_submit(
    cluster: SlurmCluster, overrides: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> Submitted:
    """Run `python -m launch.submit` against a cluster."""
    ours = {name: value for name, value in os.environ.items() if not _INHERITED.fullmatch(name)}
    done = subprocess.run(
        [sys.executable, "-m", "launch.submit", *overrides],
        cwd=REPOSITORY,
        env={**ours, **cluster.environment, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=_SUBMIT_SECONDS,
        check=False,
    )
    return Submitted(exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def fields(cluster: SlurmCluster, job: str) -> dict[str, str]:
    """Return what Slurm says about a job, by field."""
    return dict(
        re.findall(r"(\w+)=(\S*)", cluster.command("scontrol", "--oneliner", "show", "job", job).split("\n")[0])
    )


def state(cluster: SlurmCluster, job: str) -> str:
    """Return a job's state."""
    return fields(cluster, job)["JobState"]


def wait_for_end(cluster: SlurmCluster, job: str, *, limit_seconds: float) -> str:
    """Return the state in which a job ended."""
    wait_until(lambda: state(cluster, job) in ENDED, f"the end of job {job}", limit_seconds=limit_seconds)
    return state(cluster, job)


def attempts(directory: Path, event: str) -> list[dict[str, Any]]:
    """Return the starts, or the ends, of a run."""
    path = directory / "attempts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if record["event"] == event]


def output(directory: Path) -> str:
    """Return everything that the jobs of a run printed."""
    return "".join(path.read_text(errors="replace") for path in sorted((directory / "slurm").glob("*.out")))


def ranks(job: str) -> dict[int, psutil.Process]:
    """Return a job's training processes by their rank."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            environment, command = process.environ(), process.cmdline()
        except (psutil.Error, OSError):
            continue
        # A rank's helpers have its variables but not its module; srun has the module but is in the batch step.
        is_rank = "training.train" in command and "srun" not in Path(command[0]).name
        if is_rank and environment.get("SLURM_JOB_ID") == job and "SLURM_STEP_ID" in environment:
            found[int(environment["SLURM_PROCID"])] = process
    return found
