"""Which rank this process is, for launchers that do not say it in torch's words (RANK, WORLD_SIZE, MASTER_ADDR, …).

One table, one row per launcher. A row counts only inside what that launcher started: SLURM_PROCID=0 is set in a batch
script too and is inherited by everything that is started there by other means, SLURM_STEP_ID only inside `srun`.
"""

import re
import socket
import subprocess
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

from training.errors import ConfigError

_PORTS = range(20_000, 30_000)
"""Below the ports that Linux hands out by itself (from 32768 on)."""
_ASK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Row:
    given_inside: str
    """A variable that is set in the processes of this launcher, and nowhere else."""
    read: Callable[[Mapping[str, str]], dict[str, str]]


def adopt_launcher(environment: MutableMapping[str, str]) -> None:
    """Add what torch wants to know of a process's place in its job, unless it is there or nobody started a job.

    Raises:
        ConfigError: the launcher's own variables contradict each other, or the first node cannot be reached.
    """
    if "RANK" in environment:
        return
    for row in _ROWS:
        if row.given_inside in environment:
            for name, value in row.read(environment).items():
                environment.setdefault(name, value)
            return


def rendezvous_port(job: str, *, start: int, taken: Callable[[int], bool] = lambda _port: False) -> int:
    """Return the port of one start of a job: no two jobs and no two starts of one, as far as 10,000 ports go.

    Args:
        job: number of the job.
        start: number of the start, 0 for the first.
        taken: whether somebody listens there already; then the next port counts.

    Raises:
        ConfigError: all are taken.
    """
    first = (int(job) * 7 + start) % len(_PORTS)
    for offset in range(len(_PORTS)):
        port = _PORTS[(first + offset) % len(_PORTS)]
        if not taken(port):
            return port
    reason = f"all ports from {_PORTS[0]} to {_PORTS[-1]} are taken"
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


def _slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a task of a step. Of the step, not of the job: a step may have fewer nodes and tasks."""
    num_tasks, num_nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
    if num_tasks % num_nodes:
        reason = f"{num_tasks} tasks on {num_nodes} nodes are not as many on each"
        raise ConfigError("srun", environment["SLURM_STEP_TASKS_PER_NODE"], reason, "give srun --ntasks-per-node")
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(num_tasks),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(num_tasks // num_nodes),
    }
    if "MASTER_ADDR" not in environment:
        found["MASTER_ADDR"] = slurm_address(first_node(environment["SLURM_STEP_NODELIST"]))
    if "MASTER_PORT" not in environment:
        restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
        found["MASTER_PORT"] = str(
            rendezvous_port(environment["SLURM_JOB_ID"], start=101 * restarts + int(environment["SLURM_STEP_ID"]))
        )
    return found


_ROWS = (_Row("SLURM_STEP_ID", _slurm),)
