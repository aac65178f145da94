"""Real ssh servers on loopback addresses of this machine: to pdsh, mpirun and ssh, each is a node of its own.

All of 127/8 belongs to the loopback interface, so no network has to be set up. Keys, configuration, port and process
ids live in one temporary folder; nothing in /etc or ~/.ssh is read.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("openssh-server", "pdsh", "openmpi-bin")
_INSTALL = Path(__file__).parents[1] / "debian_packages.sh"
_NETWORK = "127.0.78"


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """Running nodes."""

    addresses: list[str]
    ssh_config: Path
    """`ssh -F` this reaches them."""
    port: int
    servers: dict[str, int]
    """Address -> process id of its ssh server."""

    def hostfile(self, folder: Path, *, slots: int) -> Path:
        """Return a hostfile written into a folder."""
        path = folder / "hosts"
        path.write_text("".join(f"{address} slots={slots}\n" for address in self.addresses))
        return path

    def overrides(self, folder: Path, *, slots: int) -> list[str]:
        """Return what `launch.submit` needs to start a run on these nodes."""
        path = self.hostfile(folder, slots=slots)
        section = "cluster.hostfile"
        return ["cluster=hostfile", f"{section}.path={path}", f"{section}.ssh_config={self.ssh_config}"]


@contextlib.contextmanager
def running_nodes(folder: Path, number: int = 2, *, environment: dict[str, str] | None = None) -> Iterator[Nodes]:
    """Install what is missing, start the nodes, and end them with everything that still runs under them."""
    subprocess.run([str(_INSTALL), *PACKAGES], check=True)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks its unprivileged part in
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    addresses = [f"{_NETWORK}.{node}" for node in range(1, number + 1)]
    port = _free_port(addresses)
    ssh_config = _write_client_config(folder, addresses, port)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    servers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for address in addresses:
            config = _write_server_config(folder, address, port, environment or {})
            log = str(folder / f"sshd-{address}.log")
            command = ["/usr/sbin/sshd", "-D", "-f", str(config), "-E", log]
            servers[address] = subprocess.Popen(command, start_new_session=True)
        for address in addresses:
            _wait_until_it_listens(address, port)
        pids = {address: server.pid for address, server in servers.items()}
        yield Nodes(addresses=addresses, ssh_config=ssh_config, port=port, servers=pids)
    finally:
        for server in servers.values():
            server.send_signal(signal.SIGKILL)
            server.wait(timeout=10)


def _write_client_config(folder: Path, addresses: list[str], port: int) -> Path:
    key = (folder / "host_key.pub").read_text().split()
    known = folder / "known_hosts"
    known.write_text("".join(f"[{address}]:{port} {key[0]} {key[1]}\n" for address in addresses))
    path = folder / "ssh_config"
    path.write_text(
        f"Host *\n  Port {port}\n  IdentityFile {folder / 'user_key'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {known}\n  StrictHostKeyChecking yes\n  BatchMode yes\n  LogLevel ERROR\n"
    )
    return path


def _write_server_config(folder: Path, address: str, port: int, environment: dict[str, str]) -> Path:
    path = folder / f"sshd_config-{address}"
    assignments = " ".join(shlex.quote(f"{name}={value}") for name, value in environment.items())
    path.write_text(
        f"ListenAddress {address}:{port}\nHostKey {folder / 'host_key'}\nPidFile none\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\nPasswordAuthentication no\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nMaxStartups 100\nUseDNS no\n"
        + (f"SetEnv {assignments}\n" if assignments else "")
    )
    return path


def _free_port(addresses: list[str]) -> int:
    with socket.socket() as listener:
        listener.bind((addresses[0], 0))
        return listener.getsockname()[1]


def _wait_until_it_listens(address: str, port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((address, port)) == 0:
                return
        assert time.monotonic() < deadline, f"no ssh server at {address}:{port} after 20 s"
        time.sleep(0.02)
