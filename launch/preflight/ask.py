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
AT_ONCE = 64
"""Commands that run here at the same time."""
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
    alone: Callable[[Sequence[str], int], list[str]] | None = None
    """Command line and a node's index -> the one to run here for it alone; None if `commands` are such already."""
    start_seconds: float = 30.0
    """What the way and an interpreter may take beyond what a node is asked to do."""
    python_path: str = str(_REPOSITORY)
    """PYTHONPATH of the nodes."""

    def ask(self, words: Sequence[str], *, seconds: float) -> list[Reply]:
        """Return the replies of all commands, in their order; none takes longer."""
        return _run_all(self.command_lines(words), seconds)

    def command_lines(self, words: Sequence[str]) -> list[list[str]]:
        """Return what `ask` runs here."""
        return self.commands(self._module(words))

    def ask_again(self, words: Sequence[str], numbers: Sequence[int], *, seconds: float) -> dict[int, Reply]:
        """Return the replies of some nodes, each asked alone; {} where each was asked alone already.

        One command over all nodes is ended everywhere when one of them cannot even start it (srun, Slurm 22.05).
        """
        if self.alone is None:
            return {}
        replies = _run_all([self.alone(self._module(words), number) for number in numbers], seconds)
        return dict(zip(numbers, replies, strict=True))

    def _module(self, words: Sequence[str]) -> list[str]:
        """Return the command line that runs one of our modules with this interpreter and this code on any node."""
        return ["env", f"PYTHONPATH={self.python_path}", "PYTHONSAFEPATH=1", sys.executable, "-m", *words]


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
    """Return the way to ask the nodes, in Slurm's order, of the allocation that this runs in.

    Args:
        nodes: their names.
        options: of srun: what the nodes must have at hand for the checks (GPUs).
    """

    def command(words: Sequence[str], nodes: Sequence[str], number: str) -> list[str]:
        places = [f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1"]
        places.append(f"--nodelist={','.join(nodes)}")
        line = " ".join(number if word == "{number}" else shlex.quote(word) for word in words)
        # --overlap: a check that hangs keeps nothing from the ranks. A failing node harms no other.
        common = ["--overlap", "--wait=0", "--kill-on-bad-exit=0", *options]
        return ["srun", *places, *common, "bash", "-c", f"exec {line}"]

    inherited = [
        path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(_REPOSITORY))
    ]
    return Way(
        nodes=list(nodes),
        commands=lambda words: [command(words, nodes, '"$SLURM_NODEID"')],
        alone=lambda words, number: command(words, [nodes[number]], str(number)),
        start_seconds=120.0,  # Slurm's prolog may run first
        python_path=os.pathsep.join([str(_REPOSITORY), *inherited]),
    )


def _numbered(words: Sequence[str], number: int) -> list[str]:
    return [str(number) if word == "{number}" else word for word in words]


def _run_all(commands: Sequence[Sequence[str]], seconds: float) -> list[Reply]:
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        return list(pool.map(lambda command: run_bounded(command, seconds), commands))


def run_bounded(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Reply:
    """Return what a command prints; after its time its process group is told to end, and soon after killed."""
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
        problem = f"no answer within {seconds:g} s"
        stdout, stderr = _end(process)
    came = time.time()
    if problem is None and process.returncode != 0:
        problem = f"exit code {process.returncode}: {last_line(stderr.decode(errors='replace'))}"
    return Reply(asked=asked, came=came, lines=stdout.decode(errors="replace").splitlines(), problem=problem)


def _end(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Return the last words of a process whose time is over. srun ends its step on SIGTERM, not when it is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_LAST_WORDS_SECONDS)
    return b"", b""  # it waits for a device or a disk that does not answer: not even killed
