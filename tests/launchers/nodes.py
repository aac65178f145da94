"""Real ssh servers on loopback addresses of this machine: to pdsh, mpirun and ssh, each is a node of its own.

All of 127/8 belongs to the loopback interface, so no network has to be set up. Keys, configuration, port and process
ids live in one temporary folder; nothing in /etc or ~/.ssh is read.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil

_PROGRAMS = ("sshd", "ssh", "ssh-keygen", "pdsh", "mpirun")
_NETWORK = "127.0.78"
_MARK = "AUTARKY_TEST_NODE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """Running nodes."""

    addresses: list[str]
    ssh_config: Path
    """`ssh -F` this reaches them."""
    port: int
    mark: str
    """What all processes that were started over ssh carry in their environment, before the node's address."""

    def processes(self, address: str | None = None) -> list[psutil.Process]:
        """Return what lives on all nodes, or on one: processes that came over ssh, whoever their parent is now."""
        wanted = [address] if address else self.addresses
        return [process for process in psutil.process_iter() if _marked(process, self.mark, wanted)]

    def survivors(self, *, within_seconds: float) -> list[str]:
        """Return the command lines of what still lives on the nodes after some seconds; [] as soon as nothing does."""
        deadline = time.monotonic() + within_seconds
        while left := self.processes():
            if time.monotonic() > deadline:
                return [" ".join(process.cmdline()) for process in left if process.is_running()]
            time.sleep(0.05)
        return []

    def kill(self, address: str) -> None:
        """End everything on a node at once, as a power cut would; the ssh server itself stays."""
        for process in self.processes(address):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

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


def why_not() -> str | None:
    """Return why no nodes can be started on this machine, None if they can."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"{', '.join(missing)} not found: `make packages` installs them (Debian, root)"
    return None if os.geteuid() == 0 else "sshd must be started by root"


@contextlib.contextmanager
def running_nodes(folder: Path, number: int = 2, *, mounted_over: Mapping[int, Path] | None = None) -> Iterator[Nodes]:
    """Start the nodes, and end them with everything that still runs under them.

    Args:
        folder: an empty one, for keys, configurations and logs.
        number: how many nodes.
        mounted_over: index of a node -> folder over which it has an empty file system of its own.
    """
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks its unprivileged part in
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    addresses = [f"{_NETWORK}.{node}" for node in range(1, number + 1)]
    port = _free_port(addresses)
    ssh_config = _write_client_config(folder, addresses, port)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    mark = uuid4().hex
    nodes = Nodes(addresses=addresses, ssh_config=ssh_config, port=port, mark=mark)
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for index, address in enumerate(addresses):
            config = _write_server_config(folder, address, port, mark)
            log = str(folder / f"sshd-{address}.log")
            command = ["/usr/sbin/sshd", "-D", "-f", str(config), "-E", log]
            if mounted_over and index in mounted_over:
                mount = f"mount -t tmpfs none {shlex.quote(str(mounted_over[index]))} && exec {shlex.join(command)}"
                command = ["unshare", "--mount", "sh", "-c", mount]
            # Tests that are killed run no `finally`: the kernel ends the server then.
            servers.append(subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], start_new_session=True))
        for address in addresses:
            _wait_until_it_listens(address, port)
        yield nodes
    finally:
        for address in addresses:
            nodes.kill(address)
        for server in servers:
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


def _write_server_config(folder: Path, address: str, port: int, mark: str) -> Path:
    path = folder / f"sshd_config-{address}"
    path.write_text(
        f"ListenAddress {address}:{port}\nHostKey {folder / 'host_key'}\nPidFile none\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\nPasswordAuthentication no\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin prohibit-password\nMaxStartups 100\nUseDNS no\nSetEnv {_MARK}={mark}@{address}\n"
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


def _marked(process: psutil.Process, mark: str, addresses: list[str]) -> bool:
    try:
        seen = process.environ().get(_MARK)
        return seen in [f"{mark}@{address}" for address in addresses] and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False
