"""The step that runs the ranks: one srun, one task per rank, and what the tasks find in their environment.

Ranks learn their place from Slurm's own variables (training/rank_environment.py); srun hands the rest over.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.local import repeatable
from launch.slurm.script import REPOSITORY, section
from training.config.run_directory import checkpoint_folders
from training.config.schema import Resume, RunConfig
from training.process_identity import LAUNCHER_VARIABLE, launched_now

_OTHERS = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", LAUNCHER_VARIABLE})
"""What a launcher around the submitting shell would have left: it means other processes."""


def rank_environment(
    run_directory: Path, config: RunConfig, *, address: str, port: int, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return what srun hands to every rank: the job's own environment and what makes a start repeatable."""
    inherited = {name: value for name, value in base.items() if name not in _OTHERS}
    added = added_environment(run_directory, config, address=address, port=port)
    return inherited | added | launched_now()


def added_environment(run_directory: Path, config: RunConfig, *, address: str, port: int | str) -> dict[str, str]:
    """Return what Autarky adds to the environment of a batch job for its ranks."""
    return {
        **config.cluster.environment,
        **repeatable(config),
        "TORCH_EXTENSIONS_DIR": str(run_directory / "torch_extensions"),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *_inherited_path()]),
    }


def rank_command(
    run_directory: Path, config: RunConfig, *, nodes: Sequence[str], restarts: int, until: str | None
) -> list[str]:
    """Return the srun command of the ranks on some nodes."""
    resume = [] if config.resume.mode is Resume.must and not restarts else [f"resume={Resume.auto}"]
    end = [] if until is None else [f"run.until={until}"]
    return module_command(run_directory, config, nodes, ["training.train", str(run_directory), *resume, *end])


def module_command(run_directory: Path, config: RunConfig, nodes: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return the srun command that runs a module as all ranks on some nodes.

    Args:
        run_directory: of the run.
        config: of the run.
        nodes: as many as the run has.
        words: the module's name and its arguments.
    """
    cluster, slurm = config.cluster, section(config)
    python = sys.executable
    options: list[str] = []
    if slurm.container is not None:
        python = slurm.container.python
        options = container_options(run_directory, config)
    if slurm.gpus_per_node is not None:
        options.append(f"--gpus-per-node={slurm.gpus_per_node}")
    return [
        *("srun", f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}"),
        f"--ntasks={cluster.num_nodes * cluster.processes_per_node}",
        f"--ntasks-per-node={cluster.processes_per_node}",
        f"--cpus-per-task={cluster.threads_per_process}",
        "--distribution=block",  # neighbours in rank share a node
        "--kill-on-bad-exit=1",
        "--label",
        *options,
        *(python, "-m", *words),
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


def _inherited_path() -> list[str]:
    """Return what the user's PYTHONPATH had; the batch script put this repository before it."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(REPOSITORY)]
