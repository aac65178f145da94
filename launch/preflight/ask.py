"""How a command gets onto every node: started here, over ssh, or by srun; each answer bounded in time."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from launch.hostfile import ssh_options
from launch.preflight.bounded import last_line
from training.config.cluster_schema import HostfileConfig

_REPOSITORY = Path(__file__).parents[2]
_AT_ONCE = 64
"""ssh clients that run at the same time."""
_LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What one command on one or all nodes printed, and when by this machine's clock."""

    asked: float
    came: float
    lines: list[str]
    problem: str | None
    """Why there is nothing, or not all; None if the command ended with 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How nodes are asked: command lines, one per node, or a single one that runs on all of them."""

    nodes: list[str]
    """Names by which people know the nodes, the first where all ranks meet."""
    commands: Callable[[Sequence[str]], list[list[str]]]
    """Command line that a node is to run -> the ones to run here; `{number}` in a word is the node's index."""

    def ask(self, words: Sequence[str], *, seconds: float) -> list[Reply]:
        """Return the replies of all commands, in their order; none takes longer."""
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            return list(pool.map(lambda command: run_bounded(command, seconds), self.commands(words)))


def here(name: str) -> Way:
    """Return the way to ask this machine alone."""
    return Way(nodes=[name], commands=lambda words: [_numbered(words, 0)])


def over_ssh(hosts: Sequence[str], hostfile: HostfileConfig) -> Way:
    """Return the way to ask the hosts of a file."""

    def commands(words: Sequence[str]) -> list[list[str]]:
        remote = [shlex.join(_numbered(words, number)) for number in range(len(hosts))]
        options = ssh_options(hostfile)
        return [["ssh", *options, host, line] for host, line in zip(hosts, remote, strict=True)]

    return Way(nodes=list(hosts), commands=commands)


def by_srun(nodes: Sequence[str], options: Sequence[str] = ()) -> Way:
    """Return the way to ask the nodes of the Slurm allocation that this runs in; each is told its own index."""

    def commands(words: Sequence[str]) -> list[list[str]]:
        count = str(len(nodes))
        places = [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--nodelist={','.join(nodes)}"]
        line = " ".join('"$SLURM_NODEID"' if word == "{number}" else shlex.quote(word) for word in words)
        return [["srun", *places, "--overlap", "--wait=0", *options, "bash", "-c", f"exec {line}"]]

    return Way(nodes=list(nodes), commands=commands)


def module_here(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs one of our modules with this interpreter and this code on any node."""
    variables = [f"PYTHONPATH={_REPOSITORY}", "PYTHONSAFEPATH=1"]
    return ["env", *variables, sys.executable, "-m", module, *arguments]


def _numbered(words: Sequence[str], number: int) -> list[str]:
    return [str(number) if word == "{number}" else word for word in words]


def run_bounded(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Reply:
    """Return what a command prints; after its time it and its process group are killed."""
    asked = time.time()
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return Reply(asked=asked, came=time.time(), lines=[], problem=f"{command[0]}: {error.strerror}")
    problem: str | None = None
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        problem = f"no answer within {seconds:g} s"
        try:
            stdout, stderr = process.communicate(timeout=_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:  # it waits for a device or a disk that does not answer: not even killed
            stdout, stderr = b"", b""
    came = time.time()
    if problem is None and process.returncode != 0:
        problem = f"exit code {process.returncode}: {last_line(stderr.decode(errors='replace'))}"
    return Reply(asked=asked, came=came, lines=stdout.decode(errors="replace").splitlines(), problem=problem)
