"""Which process is meant: an id may be used again, the pair of id and start time may not. Linux."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

LAUNCHER_VARIABLE = "AUTARKY_LAUNCHER"
"""Environment variable in which `launch.submit` tells its ranks who it is: "<process id>:<start time>"."""
LAUNCHED_VARIABLE = "AUTARKY_LAUNCHED"
"""Environment variable in which whoever starts ranks says when: Unix seconds."""


def launched_now() -> dict[str, str]:
    """Return the variable by which ranks know that they are launched now."""
    return {LAUNCHED_VARIABLE: f"{time.time():.3f}"}


def launched_seconds() -> float:
    """Return the Unix time at which this process was launched: as it was told, else when the process began."""
    try:
        return float(os.environ[LAUNCHED_VARIABLE])
    except (KeyError, ValueError):
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        age = uptime - int(start_time(os.getpid())) / os.sysconf("SC_CLK_TCK")
        return time.time() - age


def host_name() -> str:
    """Return the name by which a scheduler, or else the network, knows this host; Slurm's may be one of its own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A process, told so exactly that others can see whether it still is the same."""

    host: str
    machine: str
    """Boot id and pid namespace: where both are the same, a process id means the same process."""
    pid: int
    start_time: str


def myself() -> Identity:
    """Return this process."""
    return Identity(host=host_name(), machine=this_machine(), pid=os.getpid(), start_time=start_time(os.getpid()))


def this_machine() -> str:
    """Return boot id and pid namespace, between which process ids mean the same."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def start_time(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; "" if there is none or it only waits to be reaped."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def stat_fields(pid: int) -> list[str]:
    """Return /proc/PID/stat from field 3 (the state) on; the command name before it may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
