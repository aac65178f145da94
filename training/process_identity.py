"""Which process is meant: an id may be used again, the pair of id and start time may not. Linux."""

from pathlib import Path

LAUNCHER_VARIABLE = "AUTARKY_LAUNCHER"
"""Environment variable in which `launch.submit` tells its ranks who it is: "<process id>:<start time>"."""


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
