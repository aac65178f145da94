"""What nodes can only show together: one shared folder, and a port of the first node that all others reach."""

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch.preflight.findings import Finding, NodeReport, Status
from training.errors import ConfigError

_NONCE = "nonce"
_SEEN = "seen-"
_CHECK = "rendezvous port"
_EXPECTED = "a connection from every node"


def leave_nonce(folder: Path, nonce: str) -> None:
    """Write what every node has to read in a folder that all of them should see."""
    (folder / _NONCE).write_text(nonce)


def answer_nonce(folder: Path, number: int) -> None:
    """Write what was read there into a file of this node's own."""
    text = (folder / _NONCE).read_text()
    (folder / f"{_SEEN}{number}").write_text(text)


def shared_folder(folder: Path, number: int, nonce: str) -> Finding:
    """Return whether a node's answer came back through the folder, seen from the machine that asked."""
    path = folder / f"{_SEEN}{number}"
    os.listdir(folder)  # makes NFS look at the folder anew
    try:
        seen = path.read_text()
    except FileNotFoundError:
        seen = "the node wrote, nothing arrived" if folder.exists() else "gone"
    good = seen == nonce
    return Finding(
        check="shared folder",
        status=Status.ok if good else Status.fail,
        seen="read and written" if good else seen,
        expected=f"{folder.parent} is the same folder on all nodes",
        remedy="" if good else "mount it, or choose a run.root on storage that all nodes see",
    )


def whose_fault(reports: Sequence[NodeReport]) -> list[NodeReport]:
    """Return the reports with a meeting that did not come about held against those at fault only.

    Nobody reaches a first node that is not there, or whose port is taken; and where none of several others reaches it,
    it is the first node, too.
    """
    first, *others = reports
    missed = [report.node for report in others if _missed(report)]
    listened = [finding for finding in first.findings if finding.check == _CHECK]
    if not missed:
        return list(reports)
    if listened and listened[0].status is not Status.fail:
        if len(missed) < max(2, sum(bool(report.facts) for report in others)):
            return list(reports)
        seen = f"none of {len(missed)} other nodes reached it"
        remedy = "look at its name, routes and firewall; cluster.master_port"
        alone = Finding(check=_CHECK, status=Status.fail, seen=seen, expected=_EXPECTED, remedy=remedy)
        kept = [finding for finding in first.findings if finding.check != _CHECK]
        first = replace(first, findings=[*kept, alone])
    return [first, *(_excused(report) for report in others)]


def _missed(report: NodeReport) -> bool:
    return any(finding.check == _CHECK and finding.status is Status.fail for finding in report.findings)


def _excused(report: NodeReport) -> NodeReport:
    def excused(finding: Finding) -> Finding:
        missed = finding.check == _CHECK and finding.status is Status.fail
        return replace(finding, status=Status.warn, remedy="see the first node") if missed else finding

    return replace(report, findings=[excused(finding) for finding in report.findings])


def split_address(text: str) -> tuple[str, int]:
    """Return (host, port) of HOST:PORT.

    Raises:
        ConfigError: it is none.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError("--meet", text, "is not HOST:PORT", "give the first node's address and a free port of it")
    return host, int(port)


def listen(address: str, num_others: int, *, seconds: float) -> list[Finding]:
    """Be the first node: return whether the port is free and all others came."""
    host, port = split_address(address)
    came = 0
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            remedy = "leave cluster.master_port out: then a free one is taken"
            seen = f"{port}: {error.strerror}"
            return [Finding(check=_CHECK, status=Status.fail, seen=seen, expected="free", remedy=remedy)]
        listener.listen(4096)
        deadline = time.monotonic() + seconds
        while came < num_others and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.close()
                came += 1
    # Who did not come says so itself, and why.
    seen = f"{came} of {num_others} nodes came to {host}:{port}"
    return [
        Finding(
            check=_CHECK,
            status=Status.ok if came == num_others else Status.warn,
            seen=seen,
            expected=_EXPECTED,
        )
    ]


def connect(address: str, *, seconds: float) -> list[Finding]:
    """Be another node: return whether the first one's port is reached in time; it may listen a bit later."""
    host, port = split_address(address)
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())):
                return [Finding(check=_CHECK, status=Status.ok, seen=f"{address} reached", expected=_EXPECTED)]
        except OSError as error:
            if time.monotonic() > deadline - 0.2:
                remedy = "look at name service, routes and firewall between the two; cluster.hostfile.master_addr"
                seen = f"{address}: {error.strerror or error}"
                return [Finding(check=_CHECK, status=Status.fail, seen=seen, expected=_EXPECTED, remedy=remedy)]
        time.sleep(0.2)
