"""Where the tasks of a Slurm step meet: the address of the first node, and a port that no other start has."""

import re
import socket
import subprocess
from collections.abc import Callable, Mapping

from training.errors import ConfigError

PORTS = range(20_000, 30_000)
"""Below the ports that Linux hands out by itself (from 32768 on)."""
_ASK_SECONDS = 30.0


def rendezvous_port(job: str, *, start: int, taken: Callable[[int], bool] = lambda _port: False) -> int:
    """Return the port of one start of a job: no two jobs and no two starts of one, as far as 10,000 ports go.

    Args:
        job: number of the job.
        start: number of the start, 0 for the first.
        taken: whether somebody listens there already; then the next port counts.

    Raises:
        ConfigError: all are taken.
    """
    first = (int(job) * 7 + start) % len(PORTS)
    for offset in range(len(PORTS)):
        port = PORTS[(first + offset) % len(PORTS)]
        if not taken(port):
            return port
    reason = f"all ports from {PORTS[0]} to {PORTS[-1]} are taken"
    raise ConfigError("cluster.master_port", "null", reason, "cluster.master_port=PORT names another one")


def slurm_address(node: str) -> str:
    """Return the address of a node, as Slurm itself reaches it; node names need not resolve.

    Raises:
        ConfigError: Slurm does not know it.
    """
    try:
        answer = subprocess.run(
            ["scontrol", "--oneliner", "show", "node", node],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    if match := re.search(r"\bNodeAddr=(\S+)", answer):
        return match[1]
    try:  # inside a container there is no scontrol
        return str(socket.getaddrinfo(node, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        reason = f"neither scontrol nor name resolution knows its address: {error}"
        raise ConfigError("MASTER_ADDR", node, reason, "export MASTER_ADDR=ADDRESS before srun") from None


def first_node(node_list: str) -> str:
    """Return the first node of Slurm's short form: node[003-007,9],other -> node003."""
    match = re.match(r"(?P<prefix>[^,\[\]]+)(\[(?P<first>[^,\]-]+)[^\]]*\](?P<suffix>[^,\[]*))?", node_list)
    if match is None:
        raise ConfigError("SLURM_STEP_NODELIST", node_list, "names no node", "start the ranks with srun")
    return f"{match['prefix']}{match['first'] or ''}{match['suffix'] or ''}"


def step_rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """Return MASTER_ADDR and MASTER_PORT as far as a step's own variables do not hold them; equal on all tasks.

    Raises:
        ConfigError: Slurm does not know the first node, or all ports are taken.
    """
    found = {}
    if "MASTER_ADDR" not in environment and "SLURM_STEP_NODELIST" in environment:
        found["MASTER_ADDR"] = slurm_address(first_node(environment["SLURM_STEP_NODELIST"]))
    if "MASTER_PORT" not in environment and "SLURM_JOB_ID" in environment:
        # Starts of a job follow each other and so do its steps: another port for each.
        restarts, step = (int(environment.get(name, "0")) for name in ("SLURM_RESTART_COUNT", "SLURM_STEP_ID"))
        found["MASTER_PORT"] = str(rendezvous_port(environment["SLURM_JOB_ID"], start=101 * restarts + step))
    return found
