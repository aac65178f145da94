"""The step that runs the ranks: one srun, one task per rank, and what the tasks find in their environment.

Ranks learn their place from Slurm's own variables (training/rank_environment.py); srun hands the rest over.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.slurm.script import REPOSITORY, section
from training.config.run_directory import checkpoint_folders
from training.config.schema import Resume, RunConfig

CHECK_SECONDS = 120.0
"""Longest a node may take to show that it is there; Slurm's prolog may run first."""


def rank_environment(
    run_directory: Path, config: RunConfig, *, address: str, port: int, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return what srun hands to every rank: the job's own environment and what makes a start repeatable."""
    return {**base, **added_environment(run_directory, config, address=address, port=port)}


def added_environment(run_directory: Path, config: RunConfig, *, address: str, port: int | str) -> dict[str, str]:
    """Return what Autarky adds to the environment of a batch job for its ranks."""
    return {
        **config.cluster.environment,
        "DS_ACCELERATOR": config.cluster.accelerator.device,
        "OMP_NUM_THREADS": str(config.cluster.threads_per_process),
        "TORCH_EXTENSIONS_DIR": str(run_directory / "torch_extensions"),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *_inherited_path()]),
        "PYTHONSAFEPATH": "1",
    }


def rank_command(
    run_directory: Path, config: RunConfig, *, nodes: Sequence[str], restarts: int, until: str | None
) -> list[str]:
    """Return the srun command of the ranks on some nodes."""
    cluster, slurm = config.cluster, section(config)
    resume = [] if config.resume.mode is Resume.must and not restarts else [f"resume={Resume.auto}"]
    end = [] if until is None else [f"run.until={until}"]
    python = sys.executable
    options: list[str] = []
    if slurm.container is not None:
        python = slurm.container.python
        options = container_options(run_directory, config)
    if slurm.gpus_per_node is not None:
        options.append(f"--gpus-per-node={slurm.gpus_per_node}")
    return [
        *_srun(nodes),
        f"--ntasks={cluster.num_nodes * cluster.processes_per_node}",
        f"--ntasks-per-node={cluster.processes_per_node}",
        f"--cpus-per-task={cluster.threads_per_process}",
        "--distribution=block",  # neighbours in rank share a node
        "--kill-on-bad-exit=1",
        "--label",
        *options,
        python,
        "-m",
        "training.train",
        str(run_directory),
        *resume,
        *end,
    ]


def check_command(folder: Path, *, nodes: Sequence[str], job: str, restarts: int) -> list[str]:
    """Return the srun command that has every node write its file into a folder; a failing one harms no other."""
    return [
        *_srun(nodes),
        f"--ntasks={len(nodes)}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=0",
        "--label",
        sys.executable,
        "-m",
        "launch.slurm.node_check",
        str(folder),
        job,
        str(restarts),
    ]


def container_options(run_directory: Path, config: RunConfig) -> list[str]:
    """Return pyxis' options: the image, all folders a rank touches, and whose environment variables win."""
    container = section(config).container
    assert container is not None
    folders = [REPOSITORY, run_directory, config.data.prepared_root, *checkpoint_folders(config, run_directory)[1:]]
    mounts = [*(f"{folder}:{folder}" for folder in map(str, folders)), *container.mounts]
    ours = added_environment(run_directory, config, address="", port="")
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(dict.fromkeys(mounts))}",
        f"--container-env={','.join(ours)}",
        "--no-container-mount-home",
    ]


def _srun(nodes: Sequence[str]) -> list[str]:
    return ["srun", f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}"]


def _inherited_path() -> list[str]:
    """Return what the user's PYTHONPATH had; the batch script put this repository before it."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(REPOSITORY)]
