"""All checks of the node that this runs on, at the same time; the report is one line of JSON for whoever asked."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.preflight.bounded import run_all
from launch.preflight.findings import Finding, NodeReport, Status
from launch.preflight.gpus import dcgm, gpu_state, nvlinks, xids
from launch.preflight.infiniband import infiniband
from launch.preflight.machine import clock_service, disk_free, disk_speed, facts, interface, stale_locks
from launch.preflight.meeting import answer_nonce, connect, listen
from training.config.schema import RunConfig
from training.process_identity import host_name

MARK = "AUTARKY_PREFLIGHT "
"""Before the JSON: logins and launchers print things of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A node among the others that are checked."""

    folder: Path
    """Folder that all nodes should see; this node may write there."""
    number: int
    """Index of this node; node 0 is the one where all ranks will meet."""
    count: int
    """Number of nodes."""
    meet: str | None
    """HOST:PORT of the rendezvous; None looks at no port."""


def check_node(config: RunConfig, place: Place | None = None) -> NodeReport:
    """Return what this node shows, alone or as one of several; takes little longer than one check may."""
    limits = config.cluster.preflight
    checks: dict[str, Callable[[], list[Finding]]] = {
        "disk free": lambda: disk_free(config),
        "disk speed": lambda: disk_speed(config),
        "build locks": lambda: stale_locks(os.environ.get("TORCH_EXTENSIONS_DIR")),
        "clock service": clock_service,
    }
    hostfile = config.cluster.hostfile
    if hostfile is not None and (device := hostfile.interface) is not None:
        checks["interface"] = lambda: interface(device)
    if place is not None:
        checks["shared folder"] = lambda: _answer(place)
    if place is not None and (meet := place.meet) is not None and place.count > 1:
        # Less than the check's own limit: it has to say what it saw.
        seconds = limits.check_seconds * 0.8
        if place.number == 0:
            checks["rendezvous port"] = lambda: listen(meet, place.count - 1, seconds=seconds)
        else:
            checks["rendezvous port"] = lambda: connect(meet, seconds=seconds)
    if config.cluster.accelerator.device == "cuda":
        checks["gpus"] = lambda: gpu_state(config)
        checks["nvlink"] = lambda: nvlinks(config)
        checks["gpu xid"] = xids
        checks["dcgmi diag"] = lambda: dcgm(config)
    checks["infiniband"] = lambda: infiniband(config)
    return NodeReport(node=host_name(), findings=run_all(checks, seconds=limits.check_seconds), facts=facts())


def blind(place: Place) -> NodeReport:
    """Return the report of a node that does not see the folder of the one who asks: it knows nothing to check by."""
    finding = Finding(
        check="shared folder",
        status=Status.fail,
        seen=f"{place.folder} is not there",
        expected="run.root is the same folder on all nodes",
        remedy="mount it, or choose a run.root on storage that all nodes see",
    )
    return NodeReport(node=host_name(), findings=[finding])


def to_line(report: NodeReport, place: Place, *, begun: float) -> str:
    """Return a report as a line for whoever asked, with this node's clock at the begin and now."""
    return MARK + json.dumps({"number": place.number, "begun": begun, "ended": time.time(), **asdict(report)})


def _answer(place: Place) -> list[Finding]:
    """Read the nonce and write it back; whoever asked judges whether it arrived."""
    answer_nonce(place.folder, place.number)
    return []
