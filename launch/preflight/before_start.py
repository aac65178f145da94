"""Preflight of the nodes that a config names, in the way that its launcher reaches them."""

import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launch import hostfile, local
from launch.preflight.across import RunRanks, run
from launch.preflight.ask import Way, by_srun, here, over_ssh, run_bounded
from launch.preflight.findings import NodeReport, bad_nodes, table
from training.config.hosts import chosen_hosts
from training.config.schema import Launcher, RunConfig
from training.errors import ConfigError, PreflightFailed
from training.slurm_rendezvous import PORTS, slurm_address

_SCONTROL_SECONDS = 30


def check_nodes(config: RunConfig) -> None:
    """Check the nodes of a run over several nodes and print what was seen; nothing if that is switched off.

    Raises:
        PreflightFailed: a node must not be used; the message is the table.
    """
    if not config.cluster.preflight.enabled or config.cluster.launcher is Launcher.local:
        return
    reports = check_all(config)
    if bad_nodes(reports):
        raise PreflightFailed(f"{table(reports)}\n  -> {remedy(config, reports)}")
    print(table(reports), flush=True)


def check_all(config: RunConfig) -> list[NodeReport]:
    """Return the reports of all nodes that a run would start on.

    Raises:
        ConfigError: they cannot be known from here.
    """
    way = _way(config)
    cluster = config.cluster
    port = cluster.master_port or secrets.choice(PORTS)
    if cluster.launcher is Launcher.slurm:
        address = slurm_address(way.nodes[0])
    else:
        address = (cluster.hostfile.master_addr if cluster.hostfile else None) or way.nodes[0]
    return run(config, way, meet=f"{address}:{port}", run_ranks=_run_ranks(config))


def remedy(config: RunConfig, reports: Sequence[NodeReport]) -> str:
    """Return how to start without the nodes that failed."""
    bad = bad_nodes(reports)
    if len(bad) == len(reports):
        return "no node is left; follow the last column"
    if config.cluster.launcher is Launcher.hostfile:
        return f'follow the last column, or leave them out: "cluster.hostfile.exclude=[{",".join(bad)}]"'
    return f'follow the last column, or leave them out: "cluster.slurm.exclude=[{",".join(bad)}]"'


def _way(config: RunConfig) -> Way:
    cluster = config.cluster
    if cluster.launcher is Launcher.hostfile and cluster.hostfile is not None:
        return over_ssh([host.name for host in chosen_hosts(cluster)], cluster.hostfile)
    if cluster.launcher is Launcher.slurm:
        return by_srun(_allocated_nodes(), gpu_options(config))
    return here(socket.gethostname())


def gpu_options(config: RunConfig) -> list[str]:
    """Return what srun must be told so that a node's checks see the GPUs that its ranks will have."""
    gpus = config.cluster.slurm.gpus_per_node if config.cluster.slurm else None
    return [] if gpus is None else [f"--gpus-per-node={gpus}"]


def _allocated_nodes() -> list[str]:
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        reason = "the nodes are only known within an allocation"
        raise ConfigError("cluster.launcher", "slurm", reason, "run this under salloc or in a batch script")
    command = ["scontrol", "show", "hostnames", nodes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SCONTROL_SECONDS, check=True)
    return done.stdout.split()


def _run_ranks(config: RunConfig) -> RunRanks | None:
    """Return what starts a module as all ranks; None under Slurm, whose batch job starts them (launch.slurm.nodes)."""
    if config.cluster.launcher is Launcher.slurm:
        return None

    def run_ranks(words: Sequence[str], seconds: float) -> int:
        with tempfile.TemporaryDirectory(prefix=".ranks-", dir=config.run.root) as name:
            folder = Path(name)
            if config.cluster.launcher is Launcher.hostfile:
                command, variables = hostfile.run_module(words, folder, config)
            else:
                command, variables = local.launcher_command(folder, config, words), local.environment(folder, config)
            return 0 if run_bounded(command, seconds, variables).problem is None else 1

    return run_ranks
