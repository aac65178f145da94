"""The ranks of a job listen on the job's interface only, and strangers' bytes do not end it."""

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.running import Job

WORLD_SIZE = 2
JUNK = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    bytes(range(256)) * 64,
    b"\0" * 4096,
    b"\xff" * 4096,
    os.urandom(2**16),
    b"",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """Two ranks that have joined and wait."""

    folder: Path
    jobs: list[Job]
    address: str
    port: int

    def listeners(self) -> list[tuple[str, int]]:
        """Where processes of the job listen for TCP."""
        found = []
        for process in [process for job in self.jobs for process in job.processes()]:
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.append((str(connection.laddr.ip), int(connection.laddr.port)))
        return found

    def goes_on(self) -> bool:
        """Whether both ranks work together to their end."""
        (self.folder / "go").touch()
        return all(job.wait(limit_seconds=60).exit_code == 0 for job in self.jobs) and all(
            (self.folder / f"done-{rank}").exists() for rank in range(WORLD_SIZE)
        )


@pytest.fixture(params=["127.0.0.1", "127.0.77.1"])
def meeting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Meeting]:
    """The second address is this machine's too, but not the one that it speaks from."""
    with socket.socket() as probe:
        probe.bind((request.param, 0))
        port = probe.getsockname()[1]
    launcher = ["WORLD_SIZE=2", "LOCAL_WORLD_SIZE=2", f"MASTER_ADDR={request.param}", f"MASTER_PORT={port}"]
    worker = [sys.executable, "-m", "tests.distributed.rendezvous_worker", str(tmp_path)]
    first, second = (["env", f"RANK={rank}", f"LOCAL_RANK={rank}", *launcher, *worker] for rank in range(WORLD_SIZE))
    with Job(first, folder=tmp_path) as job, Job(second, folder=tmp_path) as other:
        for rank, waiting in enumerate((job, other)):
            waiting.wait_until((tmp_path / f"joined-{rank}").exists, limit_seconds=100)
        yield Meeting(folder=tmp_path, jobs=[job, other], address=request.param, port=port)


def test_the_ranks_listen_on_the_loopback_only_and_junk_does_not_end_them(meeting: Meeting) -> None:
    listeners = meeting.listeners()
    assert (meeting.address, meeting.port) in listeners
    assert len(listeners) > WORLD_SIZE  # gloo's are among them
    assert {address for address, _ in listeners} == {"127.0.0.1", meeting.address}

    for address, port in listeners:
        for junk in JUNK:
            with socket.create_connection((address, port), timeout=5) as stranger:
                stranger.settimeout(0.2)
                try:
                    stranger.sendall(junk)
                    stranger.recv(100)
                except OSError:
                    continue
    assert meeting.goes_on()
