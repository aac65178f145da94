"""What the measurements ran on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil


def num_cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine() -> str:
    """Return one line: cores, CPU, memory, load, versions."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers", "accelerate"))
    return (
        f"{num_cores()} cores of {names[0] if names else platform.machine()}, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"load average {os.getloadavg()[0]:.1f} at the start; "
        f"Python {platform.python_version()}, {versions}"
    )
