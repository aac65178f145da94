"""Checks of a node that need no accelerator: disk, stale locks, clock service, interface; and what must be equal."""

import hashlib
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from launch.preflight.bounded import ToolMissing, first_line, tool
from launch.preflight.findings import Finding, Status
from training.config.schema import RunConfig

_REPOSITORY = Path(__file__).parents[2]
_PACKAGES = ("torch", "deepspeed", "numpy", "safetensors", "tokenizers", "hydra-core", "omegaconf")
_WRITTEN_BYTES = 64 * 2**20
_STALE_LOCK_SECONDS = 600.0


def disk_free(config: RunConfig) -> list[Finding]:
    """Return whether the folders that a run writes to have room."""
    needed = config.cluster.preflight.free_bytes
    folders = {"run.root": config.run.root, "data.prepared_root": config.data.prepared_root}
    if config.checkpoint.fast_root is not None:
        folders["checkpoint.fast_root"] = config.checkpoint.fast_root
    findings = []
    for key, folder in folders.items():
        existing = _existing(Path(folder))
        free = shutil.disk_usage(existing).free
        findings.append(
            Finding(
                check=f"disk free, {key}",
                status=Status.ok if free >= needed else Status.fail,
                seen=f"{free / 1e9:.1f} GB at {existing}",
                expected=f"{needed / 1e9:.1f} GB",
                remedy="" if free >= needed else f"free space, or choose another {key}",
            )
        )
    return findings


def disk_speed(config: RunConfig) -> list[Finding]:
    """Return how fast this node writes 64 MiB where the run will, on disk when the time is taken."""
    folder = _existing(Path(config.run.root))
    wanted = config.cluster.preflight.write_bytes_per_second
    block = os.urandom(2**20)
    begun = time.monotonic()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".speed-{socket.gethostname()}-") as file:
        for _ in range(_WRITTEN_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    rate = _WRITTEN_BYTES / (time.monotonic() - begun)
    fast = rate >= wanted
    remedy = "" if fast else "look at the storage; saves would take longer than planned"
    status = Status.ok if fast else Status.warn
    expected = f"{wanted / 1e6:.0f} MB/s"
    return [Finding(check="disk speed", status=status, seen=f"{rate / 1e6:.0f} MB/s", expected=expected, remedy=remedy)]


def stale_locks(folder: str | None) -> list[Finding]:
    """Return whether a build that died left a lock in the folder of compiled extensions: the next one waits for ever.

    Args:
        folder: TORCH_EXTENSIONS_DIR; None for torch's own (a run has one of its own, so this is about builds by hand).
    """
    root = Path(folder or os.path.expanduser("~/.cache/torch_extensions"))
    expected = "none older than 10 minutes"
    old = [path for path in root.glob("**/lock") if time.time() - path.stat().st_mtime > _STALE_LOCK_SECONDS]
    if old:
        remedy = f"rm {old[0]} if nobody builds there"
        return [Finding(check="build locks", status=Status.warn, seen=str(old[0]), expected=expected, remedy=remedy)]
    return [Finding(check="build locks", status=Status.ok, seen="none", expected=expected)]


def clock_service() -> list[Finding]:
    """Return whether something keeps this node's clock right."""
    expected = "synchronised"
    try:
        answer = tool("chronyc", "-n", "tracking")
        leap = next(
            (line.partition(":")[2].strip() for line in answer.stdout.splitlines() if "Leap status" in line), ""
        )
        good = answer.code == 0 and leap == "Normal"
        seen = f"chronyc: {leap or first_line(answer.stdout + answer.stderr)}"
    except ToolMissing:
        try:
            answer = tool("timedatectl", "show", "--property=NTPSynchronized", "--value")
        except ToolMissing:
            return [
                Finding(
                    check="clock service", status=Status.skipped, seen="no chronyc, no timedatectl", expected=expected
                )
            ]
        if answer.code != 0:
            seen = f"timedatectl: {first_line(answer.stderr)}"
            return [Finding(check="clock service", status=Status.skipped, seen=seen, expected=expected)]
        good, seen = answer.stdout.strip() == "yes", f"timedatectl: {first_line(answer.stdout)}"
    remedy = "" if good else "start chronyd or systemd-timesyncd on the node"
    return [
        Finding(
            check="clock service",
            status=Status.ok if good else Status.warn,
            seen=seen,
            expected=expected,
            remedy=remedy,
        )
    ]


def interface(name: str) -> list[Finding]:
    """Return whether the network interface of the rendezvous is there and up."""
    path = Path("/sys/class/net") / name
    if not path.exists():
        known = ", ".join(sorted(entry.name for entry in Path("/sys/class/net").iterdir()))
        remedy = f"give one of {known}, or cluster.hostfile.interface=null"
        return [Finding(check="interface", status=Status.fail, seen=f"no {name}", expected=name, remedy=remedy)]
    state = (path / "operstate").read_text().strip()
    up = state in ("up", "unknown")  # loopback and some virtual ones do not say
    remedy = "" if up else f"ip link set {name} up; look at cable and switch"
    return [
        Finding(
            check="interface",
            status=Status.ok if up else Status.fail,
            seen=f"{name} {state}",
            expected=f"{name} up",
            remedy=remedy,
        )
    ]


def facts() -> dict[str, str]:
    """Return what must be the same on all nodes: interpreter, packages, our own code."""
    found = {"python": platform.python_version(), "code": _code_digest(), "architecture": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"interpreter": sys.executable}


def _existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _code_digest() -> str:
    digest = hashlib.sha256()
    for folder in ("training", "eval", "launch"):
        for path in sorted((_REPOSITORY / folder).rglob("*.py")):
            digest.update(str(path.relative_to(_REPOSITORY)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
