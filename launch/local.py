"""Start a run's ranks on this machine by DeepSpeed's per-node launcher.

`deepspeed.launcher.launch` is started itself, not through `deepspeed.launcher.runner` (0.19.8), because the runner
reads a host file at /job/hostfile if one lies there, forgets CUDA_VISIBLE_DEVICES, reports success when the launcher
dies by a signal, and outlives or orphans it when it is killed itself.
"""

import base64
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.dry_run import describe
from launch.supervise import Outcome, supervise
from training.config.schema import Resume, RunConfig
from training.errors import ConfigError
from training.process_identity import LAUNCHER_VARIABLE, launched_now, start_time

_REPOSITORY = Path(__file__).parents[1]


def check_startable(config: RunConfig) -> None:
    """Check that this machine alone can start the run.

    Raises:
        ConfigError: it spans several nodes, or wants more devices than are visible.
    """
    cluster = config.cluster
    if cluster.num_nodes > 1:
        raise ConfigError(
            "cluster.num_nodes",
            cluster.num_nodes,
            "cluster.launcher=local starts the processes of this machine only",
            "cluster.num_nodes=1 works here; for more: cluster=hostfile cluster.hostfile.path=FILE, or "
            "by hand deepspeed --hostfile FILE --module training.train key=value …",
        )
    _device_ids(config)


def dry_run(run_directory: Path, config: RunConfig) -> str:
    """Return what `start` would do, as text; changes nothing."""
    return describe(
        commands=[launcher_command(run_directory, config)],
        ranks=[(socket.gethostname(), local) for local in range(config.cluster.processes_per_node)],
        environment=environment(run_directory, config),
        files={},
    )


def start(run_directory: Path, config: RunConfig, *, again: bool = False) -> Outcome:
    """Run the ranks of a frozen run directory to their end and return how it went.

    Args:
        run_directory: the run's.
        config: its config.
        again: go on from what an earlier start has left, whatever the config says.
    """
    return supervise(
        launcher_command(run_directory, config, training_words(run_directory, again=again)),
        run_directory=run_directory,
        environment=environment(run_directory, config) | launched_now(),
        until=config.run.until,
    )


def training_words(run_directory: Path, *, again: bool = False) -> list[str]:
    """Return the module that trains, and its arguments."""
    return ["training.train", str(run_directory), *([f"resume={Resume.auto}"] if again else [])]


def launcher_command(run_directory: Path, config: RunConfig, words: Sequence[str] = ()) -> list[str]:
    """Return the command that starts all ranks; the rendezvous port is free right now unless the config names one.

    They train, unless other words are given: a module's name and its arguments.
    """
    world = json.dumps({"localhost": _device_ids(config)})
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.launch",
        f"--world_info={base64.urlsafe_b64encode(world.encode()).decode()}",
        "--master_addr=127.0.0.1",
        f"--master_port={config.cluster.master_port or _free_port()}",
        "--log_level=warning",
        "--no_local_rank",
        "--module",
        *(words or training_words(run_directory)),
    ]


def environment(run_directory: Path, config: RunConfig) -> dict[str, str]:
    """Return the environment of launcher and ranks: ours plus what makes a start repeatable."""
    paths = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        # A process with a RANK is one that a launcher started (launch/stop_signals.py).
        **{name: value for name, value in os.environ.items() if name != "RANK"},
        **config.cluster.environment,
        **repeatable(config),
        "TORCH_EXTENSIONS_DIR": str(run_directory / "torch_extensions"),
        LAUNCHER_VARIABLE: f"{os.getpid()}:{start_time(os.getpid())}",
        "PYTHONPATH": os.pathsep.join(paths),
    }


def repeatable(config: RunConfig) -> dict[str, str]:
    """Return the variables that make a start repeatable, on whatever host and by whatever launcher."""
    return {
        "DS_ACCELERATOR": config.cluster.accelerator.device,
        "OMP_NUM_THREADS": str(config.cluster.threads_per_process),
        "PYTHONUNBUFFERED": "1",
        # A folder called `training` or `eval` in the launch directory must not be taken for ours.
        "PYTHONSAFEPATH": "1",
    }


def _device_ids(config: RunConfig) -> list[int] | list[str]:
    """Return the devices of the local ranks; a scheduler's or a person's CUDA_VISIBLE_DEVICES counts."""
    wanted = config.cluster.processes_per_node
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if config.cluster.accelerator.device != "cuda" or not visible:
        return list(range(wanted))
    ids = visible.split(",")
    if len(ids) < wanted:
        raise ConfigError(
            "cluster.processes_per_node",
            wanted,
            f"CUDA_VISIBLE_DEVICES={visible} shows {len(ids)} devices",
            f"cluster.processes_per_node={len(ids)} works",
        )
    return ids[:wanted]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
