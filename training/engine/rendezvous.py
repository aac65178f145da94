"""Where the ranks of a job meet, on the job's own network interface and on no other.

torch's store listens on every interface of the machine, and whoever reaches it can read, change and stop the job: it
asks for no password. So rank 0 binds the listening socket itself, to the address that MASTER_ADDR stands for, and
gloo's connections are tied to the interface that leads there.

torchrun's agent holds the store itself and binds it to every interface; ranks cannot change that.
"""

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from training.errors import ConfigError

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True, slots=True)
class Place:
    """Where ranks meet."""

    host: str
    port: int
    address: str | None
    """The host's, if it is this machine's own, else this machine's on the way there; None where it cannot be told: then
    torch chooses."""

    @property
    def interface(self) -> str | None:
        """Name of the network interface that has the address, None if none has."""
        if self.address is None:
            return None
        is_loopback = ipaddress.ip_address(self.address).is_loopback
        for _, name in socket.if_nameindex():
            found = _addresses(name)
            # All of 127.0.0.0/8 is the loopback's, which says only 127.0.0.1 of itself.
            if self.address in found or (is_loopback and any(ipaddress.ip_address(each).is_loopback for each in found)):
                return name
        return None


def place(environment: Mapping[str, str], *, num_nodes: int) -> Place:
    """Return where the ranks of a launcher's environment meet.

    A name that stands for the loopback on the master's own machine (Debian's /etc/hosts gives a host's own name
    127.0.1.1) is no address that other nodes can reach.
    """
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    address = _own_address_towards(host, port)
    if address is not None and num_nodes > 1 and ipaddress.ip_address(address).is_loopback and not _is_loopback(host):
        address = None
    return Place(host, port, address)


def store(meeting: Place, *, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """Return the store that all ranks share; rank 0 serves it unless torchrun's agent does. Collective.

    Raises:
        ConfigError: on rank 0: the port is taken.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        client = dist.TCPStore(meeting.host, meeting.port, world_size, is_master=False, timeout=timeout)
        return dist.PrefixStore(f"/worker/attempt_{attempt}", client)
    if rank > 0:
        return dist.TCPStore(meeting.host, meeting.port, world_size, is_master=False, timeout=timeout)
    return dist.TCPStore(
        meeting.address or meeting.host,
        meeting.port,
        world_size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=_listening(meeting.address, meeting.port) if meeting.address else None,
    )


def tie_gloo_to(meeting: Place) -> None:
    """Let gloo listen only on the interface on which the ranks meet, unless the environment names another."""
    if _GLOO_INTERFACE not in os.environ and (interface := meeting.interface) is not None:
        os.environ[_GLOO_INTERFACE] = interface


def _listening(address: str, port: int) -> int:
    """Return the descriptor of a socket that listens on one address only; the store closes it."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            "MASTER_PORT",
            port,
            f"rank 0 cannot listen on {address}: {error.strerror}",
            "another job has the port: take another one (cluster.master_port=null lets launch.submit choose)",
        ) from error
    listener.listen(socket.SOMAXCONN)
    return listener.detach()


def _own_address_towards(host: str, port: int) -> str | None:
    """Return the host's address if it is one of this machine's, else that from which this machine would speak to it.

    Nothing is sent. Not always the same on the host itself: one speaks to 127.0.77.1 from 127.0.0.1, where nobody else
    would look for it.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((target[0], 0))
            except OSError:  # another machine's
                probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _addresses(interface: str) -> set[str]:
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            answer = fcntl.ioctl(asker, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
            found.add(socket.inet_ntoa(answer[20:24]))
        except OSError:
            pass  # it has no IPv4 address
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        lines = []
    for digits, *_, name in map(str.split, lines):
        if name == interface:
            found.add(str(ipaddress.ip_address(bytes.fromhex(digits))))
    return found
