"""A contestant's processes: started once, given turns, ended."""

import contextlib
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What a contestant did in one turn, all ranks together."""

    seconds: float
    cpu_seconds: float
    """Processor time of all ranks: hardly moves with what else the machine does."""
    losses: list[float]
    """Mean loss per token of every step's global batch, in nats."""
    matmul_flops_per_second: float
    """Sum over ranks, measured just before and after the steps."""
    bubbles: list[float]
    """Every step's measured pipeline bubble, mean over ranks, 0 to 1; empty where the contestant measures none."""
    reference_seconds: float
    """What the log-probabilities of the reference model took before the first step; 0 of one that has none then."""


class Crew:
    """The ranks of one contestant, waiting for turns. Made by `crew`."""

    def __init__(self, name: str, ranks: list[subprocess.Popen[bytes]], log: IO[bytes]) -> None:
        self._name = name
        self._ranks = ranks
        self._log = log

    def turn(self, num_steps: int, *, timeout_seconds: float) -> Turn:
        """Train some steps and return how that went.

        Raises:
            RuntimeError: a rank ended, or did not answer in time; with the end of its log.
        """
        for rank in self._ranks:
            assert rank.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # its answer, which never comes, says more
                rank.stdin.write(f"{num_steps}\n".encode())
                rank.stdin.flush()
        answers = [self._answer(rank, timeout_seconds) for rank in self._ranks]
        shares = [answer["loss_shares"] for answer in answers]
        return Turn(
            seconds=statistics.mean(answer["seconds"] for answer in answers),
            cpu_seconds=sum(answer["cpu_seconds"] for answer in answers),
            losses=[sum(step) for step in zip(*shares, strict=True)],
            matmul_flops_per_second=sum(answer["matmul_flops_per_second"] for answer in answers),
            bubbles=answers[0]["bubbles"],
            reference_seconds=max(answer["reference_seconds"] for answer in answers),
        )

    def _answer(self, rank: subprocess.Popen[bytes], timeout_seconds: float) -> dict[str, Any]:
        assert rank.stdout is not None
        ready, _, _ = select.select([rank.stdout], [], [], timeout_seconds)
        line = rank.stdout.readline() if ready else b""
        if not line:
            what = "ended" if ready else f"did not answer within {timeout_seconds:.0f} s"
            self._log.seek(0)
            raise RuntimeError(f"{self._name}: a rank {what}\n{self._log.read()[-3000:].decode(errors='replace')}")
        return json.loads(line)


@contextlib.contextmanager
def crew(name: str, overrides: Sequence[str], *, num_ranks: int) -> Iterator[Crew]:
    """Start a contestant's ranks; they are ended on leaving, however that happens."""
    command = [sys.executable, "-m", "benchmarks.rank", name, *overrides]
    port = free_port()
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as log:
        try:
            for rank in range(num_ranks):
                ranks.append(
                    subprocess.Popen(
                        command,
                        env=rank_environment() | rendezvous(rank, port, num_ranks),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            yield Crew(name, ranks, log)
        finally:
            for process in ranks:
                kill(process)


def rank_environment() -> dict[str, str]:
    """Return the environment of every measured process: one thread, CPU, nothing fetched."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


def rendezvous(rank: int, port: int, num_ranks: int) -> dict[str, str]:
    """Return what a launcher tells a rank."""
    world = str(num_ranks)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Return a port that is free right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started as leader of its own session, with its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
