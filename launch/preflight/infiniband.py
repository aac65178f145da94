"""Whether a node's InfiniBand ports are all active at their full rate, by ibstat."""

import re

from launch.preflight.bounded import ToolMissing, tool
from launch.preflight.findings import Finding, Status
from training.config.schema import RunConfig

_CARD = re.compile(r"CA '(?P<name>[^']+)'")
_FIELD = re.compile(r"\s*(?P<name>State|Rate|Link layer):\s*(?P<value>\S+)")


def infiniband(config: RunConfig) -> list[Finding]:
    """Return whether as many ports as wanted are active, and each has its rate."""
    limits = config.cluster.preflight
    wanted, rate = limits.infiniband_ports, limits.infiniband_bits_per_second
    if wanted is None:
        return []
    expected = f"{wanted} ports active" + (f" at {rate / 1e9:g} Gb/s" if rate else "")
    try:
        answer = tool("ibstat")
    except ToolMissing:
        remedy = "install infiniband-diags"
        return [Finding(check="infiniband", status=Status.fail, seen="no ibstat", expected=expected, remedy=remedy)]
    ports = [port for port in _ports(answer.stdout) if port.get("Link layer", "InfiniBand") == "InfiniBand"]
    down = [f"{port['card']} is {port.get('State')}" for port in ports if port.get("State") != "Active"]
    active = [port for port in ports if port.get("State") == "Active"]
    slow = [f"{port['card']} has {port.get('Rate')} Gb/s" for port in active if rate and _rate(port) < rate]
    bad = [*down, *slow] if len(active) < wanted or slow else []
    if len(active) < wanted:
        bad.insert(0, f"{len(active)} active")
    remedy = "look at cable and switch port, or replace the card" if bad else ""
    seen = ", ".join(bad) or f"{len(active)} active"
    status = Status.fail if bad else Status.ok
    return [Finding(check="infiniband", status=status, seen=seen, expected=expected, remedy=remedy)]


def _ports(text: str) -> list[dict[str, str]]:
    """Return the ports that ibstat lists, each with its card's name."""
    ports: list[dict[str, str]] = []
    card = "?"
    for line in text.splitlines():
        if match := _CARD.search(line):
            card = match["name"]
        elif line.strip().startswith("Port ") and line.rstrip().endswith(":"):
            ports.append({"card": card})
        elif ports and (match := _FIELD.match(line)):
            ports[-1].setdefault(match["name"], match["value"])
    return ports


def _rate(port: dict[str, str]) -> float:
    try:
        return float(port.get("Rate", "0")) * 1e9
    except ValueError:
        return 0.0
