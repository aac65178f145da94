"""Checks of a node's NVIDIA GPUs, by the vendor's own tools. Without a tool its check is skipped, but not the count.

Figures and choice of checks: azurehpc-health-checks, conf/nd96isr_h100_v5.conf (check_gpu_count, check_gpu_xid,
check_gpu_ecc, check_gpu_clock_throttling), and OLMo-core's src/scripts/lambda/healthchecks.sh (temperature, idleness).
"""

import re

from launch.preflight.bounded import Answer, ToolMissing, first_line, tool
from launch.preflight.findings import Finding, Status
from training.config.schema import RunConfig

_ECC_UNCORRECTED = "ecc.errors.uncorrected.volatile.total"
_ECC_CORRECTED = "ecc.errors.corrected.volatile.total"
_THROTTLING = (
    "clocks_throttle_reasons.hw_slowdown",
    "clocks_throttle_reasons.hw_thermal_slowdown",
    "clocks_throttle_reasons.hw_power_brake_slowdown",
    "clocks_throttle_reasons.sw_thermal_slowdown",
)
"""What slows a GPU down though nothing runs on it; power capping under load is no fault."""
_FIELDS = (
    *("index", "driver_version", _ECC_UNCORRECTED, _ECC_CORRECTED, "remapped_rows.pending", "remapped_rows.failure"),
    *("temperature.gpu", "memory.used", *_THROTTLING),
)
_XID = re.compile(r"NVRM: Xid \((?P<where>[^)]*)\): (?P<number>\d+)")
_HARMLESS_XIDS = frozenset({13, 31, 43, 45})
"""An application's own fault (NVIDIA, "XID Errors": 13, 31 illegal access, 43 stopped, 45 preemptive cleanup)."""
_FIELDS_LINE = re.compile(r"Link \d+: (?P<state>.+)")


def gpu_state(config: RunConfig) -> list[Finding]:
    """Return whether all GPUs answer, without errors, cool, idle and at full clocks."""
    wanted = config.cluster.processes_per_node
    try:
        answer = tool("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
    except ToolMissing:
        remedy = "install the driver, or leave the node out"
        return [_finding("gpu count", Status.fail, "no nvidia-smi", f"{wanted} GPUs", remedy)]
    gpus = [dict(zip(_FIELDS, _cells(line), strict=False)) for line in answer.stdout.splitlines() if line.strip()]
    gpus = [gpu for gpu in gpus if len(gpu) == len(_FIELDS)]
    if answer.code != 0 or len(gpus) < wanted:
        seen = f"{len(gpus)}: {first_line(answer.stderr + answer.stdout)}" if answer.code else str(len(gpus))
        remedy = "reboot the node; if GPUs are still missing, replace it"
        return [_finding("gpu count", Status.fail, seen, str(wanted), remedy)]
    limits = config.cluster.preflight
    return [
        _finding("gpu count", Status.ok, str(len(gpus)), str(wanted)),
        _judge("gpu ecc uncorrected", gpus, _ECC_UNCORRECTED, 0, "reset the GPU; again soon: replace it"),
        _judge("gpu ecc corrected", gpus, _ECC_CORRECTED, limits.correctable_ecc_errors, "watch it", Status.warn),
        _judge("gpu rows to remap", gpus, "remapped_rows.pending", 0, "reset the GPU, so that its rows are remapped"),
        _judge("gpu rows lost", gpus, "remapped_rows.failure", 0, "replace the GPU: it has no spare rows left"),
        _judge("gpu temperature", gpus, "temperature.gpu", limits.gpu_temperature_celsius, "look at the cooling"),
        _judge(
            "gpu memory used, MiB", gpus, "memory.used", limits.gpu_memory_used_bytes / 2**20, "end the process on it"
        ),
        _throttling(gpus),
    ]


def nvlinks(config: RunConfig) -> list[Finding]:
    """Return whether every GPU has as many NVLinks up as it should."""
    wanted = config.cluster.preflight.nvlinks_per_gpu
    if wanted is None:
        return []
    try:
        answer = tool("nvidia-smi", "nvlink", "--status")
    except ToolMissing:
        return [_finding("nvlink", Status.skipped, "no nvidia-smi", f"{wanted} a GPU")]
    up: dict[str, int] = {}
    gpu = "?"
    for line in answer.stdout.splitlines():
        if line.startswith("GPU "):
            gpu = line.partition(":")[0]
            up[gpu] = 0
        elif (match := _FIELDS_LINE.search(line)) and "inactive" not in match["state"].lower():
            up[gpu] = up.get(gpu, 0) + 1
    bad = [f"{name} has {number}" for name, number in up.items() if number != wanted]
    if not up:
        bad = [first_line(answer.stderr + answer.stdout)]
    remedy = "look at the fabric manager (systemctl status nvidia-fabricmanager), then reboot" if bad else ""
    seen = ", ".join(bad) or f"{wanted} on each of {len(up)}"
    return [_finding("nvlink", Status.fail if bad else Status.ok, seen, f"{wanted} a GPU", remedy)]


def xids() -> list[Finding]:
    """Return the driver's errors in the kernel's log that are no application's fault."""
    expected = "no Xid since the boot"
    try:
        answer = tool("dmesg")
    except ToolMissing:
        return [_finding("gpu xid", Status.skipped, "no dmesg", expected)]
    if answer.code != 0:
        return [_finding("gpu xid", Status.skipped, first_line(answer.stderr), expected)]
    found = [match for match in _XID.finditer(answer.stdout) if int(match["number"]) not in _HARMLESS_XIDS]
    if not found:
        return [_finding("gpu xid", Status.ok, "none", expected)]
    last = found[-1]
    seen = f"{len(found)}, the last {last['number']} at {last['where']}"
    return [_finding("gpu xid", Status.fail, seen, expected, "reboot the node; again: replace the GPU")]


def dcgm(config: RunConfig) -> list[Finding]:
    """Return the verdict of NVIDIA's own diagnosis, if it is asked for."""
    level = config.cluster.preflight.dcgm_level
    if level is None:
        return []
    try:
        answer = tool("dcgmi", "diag", "-r", str(level))
    except ToolMissing:
        return [_finding("dcgmi diag", Status.skipped, "no dcgmi", "Pass")]
    bad = _dcgm_failures(answer)
    remedy = "replace what it names" if bad else ""
    return [_finding("dcgmi diag", Status.fail if bad else Status.ok, bad or "Pass", "Pass", remedy)]


def _dcgm_failures(answer: Answer) -> str:
    failed = [line for line in answer.stdout.splitlines() if re.search(r"\|\s*Fail", line)]
    if failed:
        return ", ".join(line.strip("| ").split("|")[0].strip() for line in failed)[:100]
    return first_line(answer.stderr + answer.stdout) if answer.code else ""


def _judge(
    check: str, gpus: list[dict[str, str]], field: str, limit: float, remedy: str, status: Status = Status.fail
) -> Finding:
    """Return whether a number of every GPU is within a limit; what a GPU does not support is skipped."""
    numbers = {gpu["index"]: number for gpu in gpus if (number := _number(gpu[field])) is not None}
    if not numbers:
        return _finding(check, Status.skipped, gpus[0][field], f"at most {limit:g}")
    bad = [f"GPU {index}: {number:g}" for index, number in numbers.items() if number > limit]
    if bad:
        return _finding(check, status, ", ".join(bad), f"at most {limit:g}", remedy)
    return _finding(check, Status.ok, f"at most {max(numbers.values()):g}", f"at most {limit:g}")


def _throttling(gpus: list[dict[str, str]]) -> Finding:
    slow = [
        f"GPU {gpu['index']}: {field.rpartition('.')[2]}"
        for gpu in gpus
        for field in _THROTTLING
        if gpu[field] == "Active"
    ]
    remedy = "look at cooling and power supply of the node" if slow else ""
    return _finding("gpu clocks", Status.fail if slow else Status.ok, ", ".join(slow) or "full", "no slowdown", remedy)


def _number(cell: str) -> float | None:
    """Return a cell's number; Yes and No count 1 and 0, [N/A] is none."""
    if cell in ("Yes", "No"):
        return float(cell == "Yes")
    try:
        return float(cell)
    except ValueError:
        return None


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(",")]


def _finding(check: str, status: Status, seen: str, expected: str, remedy: str = "") -> Finding:
    return Finding(check=check, status=status, seen=seen, expected=expected, remedy=remedy)
