"""Daemons of a throw-away cluster: up in half a second, hurt on demand, and gone without a trace."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.slurm_cluster.configuration import node_names, write_configuration

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
_START_SECONDS = 30.0
_COMMAND_SECONDS = 60.0


def why_not() -> str | None:
    """Return why no cluster can be started on this machine, None if one can."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not found: `make packages` installs Slurm (Debian, root)"
    if os.geteuid() != 0:
        return "slurmd must be started by root"
    return None


def wait_until(come: Callable[[], bool], what: str, *, limit_seconds: float) -> float:
    """Return after how many seconds something came about; fail after the limit."""
    begun = time.monotonic()
    while not come():
        assert time.monotonic() - begun < limit_seconds, f"not within {limit_seconds} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - begun


class SlurmCluster:
    """A context manager: inside it `environment` reaches a cluster whose nodes are all idle; after it nothing is left.

    Args:
        num_nodes: nodes, called node1, node2, …
        kill_wait_seconds: between SIGTERM and SIGKILL when Slurm ends a job (KillWait; Slurm's default is 30).
    """

    def __init__(self, num_nodes: int, *, kill_wait_seconds: int = 3) -> None:
        self.nodes = node_names(num_nodes)
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.root.chmod(0o755)
        self._conf = write_configuration(self.root, num_nodes=num_nodes, kill_wait_seconds=kill_wait_seconds)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs beside the rest of the environment."""
        return {"SLURM_CONF": str(self._conf), "PATH": _path()}

    def __enter__(self) -> Self:
        try:
            self._run("munged", *self._munge_options())
            self._run("slurmctld", "-f", str(self._conf), "-i")
            for node in self.nodes:
                self.start_daemon(node)
            self.wait_until_idle(*self.nodes)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def command(self, *words: str, limit_seconds: float = _COMMAND_SECONDS) -> str:
        """Return the output of one of Slurm's commands; fail if it fails."""
        return self._run(*words, limit_seconds=limit_seconds)

    # -- nodes ------------------------------------------------------------------------------------------------------

    def node_states(self) -> dict[str, str]:
        """Return the long state of every node; Slurm appends a mark to some (`idle*` does not answer)."""
        lines = self._run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").split("\n")
        return dict(line.split() for line in lines if line)

    def wait_until_idle(self, *nodes: str) -> None:
        """Return as soon as some nodes are idle."""

        def all_idle() -> bool:
            try:
                states = self.node_states()
            except subprocess.CalledProcessError:  # the controller does not answer yet
                return False
            return all(states.get(node) == "idle" for node in nodes)

        wait_until(all_idle, f"{nodes} idle", limit_seconds=_START_SECONDS)

    def start_daemon(self, node: str) -> None:
        """Start a node's slurmd."""
        self._run("slurmd", "-f", str(self._conf), "-N", node)

    def kill_daemon(self, node: str) -> None:
        """Kill a node's slurmd, and nothing else of the node."""
        self._daemon(node).kill()

    def power_off(self, node: str) -> None:
        """Kill all that runs on a node at the same moment: slurmd, what starts its steps, and their processes."""
        _kill_all(self._processes_of(node))

    def drain(self, node: str) -> None:
        """Let no new job onto a node."""
        self._run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")

    def resume(self, node: str) -> None:
        """Let jobs onto a node again, whatever kept them from it."""
        self._run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def bring_back(self) -> None:
        """End all jobs and have every node idle again, however it was hurt."""
        self._run("scancel", "--user=root")
        for node in self.nodes:
            if not self._daemon_lives(node):
                _kill_all(self._processes_of(node))
                self.start_daemon(node)
        wait_until(lambda: self._run("squeue", "--noheader") == "", "no job left", limit_seconds=_START_SECONDS)
        for node, state in self.node_states().items():
            if state != "idle":
                subprocess.run(
                    ["scontrol", "update", f"NodeName={node}", "State=RESUME"],
                    env=self._full_environment(),
                    capture_output=True,
                    check=False,  # a node that comes back by itself at this moment cannot be resumed
                    timeout=_COMMAND_SECONDS,
                )
        self.wait_until_idle(*self.nodes)

    # -- the end ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End every process of the cluster, by its id, and remove its files."""
        for name in (*(f"slurmd-{node}" for node in self.nodes), "slurmctld"):
            pid = _read_pid(self.root / "run" / f"{name}.pid")
            if pid is not None:
                _send(pid, signal.SIGTERM, self._is_mine)
        wait_for_end = time.monotonic() + 5
        while time.monotonic() < wait_for_end and any((self.root / "run").glob("*.pid")):
            time.sleep(0.05)
        _kill_all(self._all_processes())
        shutil.rmtree(self.root, ignore_errors=True)

    def processes_left(self) -> list[str]:
        """Return the command lines of the jobs' processes that live, of whatever node."""
        daemons = ("munged", "slurmctld", "slurmd")
        return [_words(process) for process in self._all_processes() if not _words(process).startswith(daemons)]

    def _processes_of(self, node: str) -> list[psutil.Process]:
        """Return a node's processes: its daemon, those of its steps, and all below them."""
        log = str(self.root / "log" / f"slurmd-{node}.log")
        roots = [
            process
            for process in self._all_processes()
            if _environment(process).get("SLURMD_NODENAME") == node or log in _open_files(process)
        ]
        return list({process.pid: process for root in roots for process in [root, *_descendants(root)]}.values())

    def _all_processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_mine(process)]

    def _is_mine(self, process: psutil.Process) -> bool:
        if process.pid == os.getpid():
            return False
        environment, words = _environment(process), _words(process)
        if environment.get("SLURM_CONF") == str(self._conf) and "SLURM_JOB_ID" in environment:
            return True
        if words.startswith("slurmstepd"):  # it overwrites its command line and environment
            return any(path.startswith(f"{self.root}/log/") for path in _open_files(process))
        return words.startswith(("munged", "slurmctld", "slurmd")) and str(self.root) in words

    def _daemon(self, node: str) -> psutil.Process:
        pid = _read_pid(self.root / "run" / f"slurmd-{node}.pid")
        assert pid is not None, f"{node} has no daemon"
        return psutil.Process(pid)

    def _daemon_lives(self, node: str) -> bool:
        pid = _read_pid(self.root / "run" / f"slurmd-{node}.pid")
        return pid is not None and psutil.pid_exists(pid) and self._is_mine(psutil.Process(pid))

    def _munge_options(self) -> list[str]:
        folder = self.root / "munge"
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
        return [f"--{option}={folder / name}" for option, name in {**files, "seed-file": "munged.seed"}.items()]

    def _full_environment(self) -> Mapping[str, str]:
        return {**os.environ, **self.environment}

    def _run(self, *words: str, limit_seconds: float = _COMMAND_SECONDS) -> str:
        """Return a command's output. A daemon inherits no pipe: it would be waited for."""
        program = shutil.which(words[0], path=_path())
        assert program is not None
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            try:
                subprocess.run(
                    [program, *words[1:]],
                    env=self._full_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    check=True,
                    timeout=limit_seconds,
                )
            except subprocess.CalledProcessError as error:
                errors.seek(0)
                error.add_note(errors.read().decode(errors="replace"))
                raise
            output.seek(0)
            return output.read().decode(errors="replace").strip()


def _path() -> str:
    """Return a search path that holds the daemons: Debian puts them where only root looks."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _send(pid: int, number: int, is_mine: Callable[[psutil.Process], bool]) -> None:
    try:
        process = psutil.Process(pid)
        if is_mine(process):
            process.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # it has ended by itself


def _kill_all(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue  # it went with another one
    psutil.wait_procs(list(processes), timeout=5)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _words(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
    except (psutil.Error, OSError):
        return ""
    return " ".join([Path(words[0]).name, *words[1:]]) if words else ""


def _open_files(process: psutil.Process) -> list[str]:
    try:
        return [os.readlink(f"/proc/{process.pid}/fd/{name}") for name in os.listdir(f"/proc/{process.pid}/fd")]
    except OSError:
        return []
