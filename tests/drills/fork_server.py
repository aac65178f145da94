"""A process that has imported everything and forks launchers, which fork ranks: a start costs no imports.

    python -m tests.drills.fork_server        one JSON object a line on standard input, an answer on standard output

    {"start": [argument, …], "world_size": n, "environment": {…}, "output": path} -> {"launcher": pid, "ranks": [pid…]}
    {"wait": seconds} -> {"left": [pid, …], "exit_codes": {pid: code}}     left: what still lives after that time
    {"kill_all": null} -> the same, after killing what lived

What is forked is the real thing: `training.train.main` with a launcher's environment. It is only right as long as
nothing here has threads, a process group or an open OpenMP region, so that is checked. Orphans come back to this
process, so it knows when the last process of a start has ended, whoever of them was killed.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

import training.composition  # what training.train imports once it runs
import training.train
from launch import stop_signals
from training.engine.deepspeed_private import import_all_of_deepspeed

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_PEER_SECONDS = 1.0
"""What the other ranks get to end by themselves after the first has failed; DeepSpeed's launcher looks every second."""
_TERMINATION_SECONDS = 5.0
"""Between SIGTERM and SIGKILL."""


class Start:
    """The processes of one start, from the server's side."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        read_end, write_end = os.pipe()
        self.launcher = os.fork()
        if self.launcher == 0:
            os.close(read_end)
            _as_child(lambda: _launch(request, write_end))
        os.close(write_end)
        self._pipe = os.fdopen(read_end)
        self.ranks: list[int] = json.loads(self._pipe.readline())
        self._alive = {self.launcher, *self.ranks}
        self._exit_codes: dict[int, int] = {}

    def wait(self, seconds: float) -> dict[str, Any]:
        """Return what lives after some seconds, or nothing as soon as that is true, and how the others ended."""
        deadline = time.monotonic() + seconds
        while self._reap() and time.monotonic() < deadline:
            time.sleep(0.002)
        if not self._alive and not self._pipe.closed:
            with self._pipe:
                self._exit_codes |= {pid: code for line in self._pipe for pid, code in [json.loads(line)]}
        return {"left": sorted(self._alive), "exit_codes": self._exit_codes}

    def kill_all(self) -> dict[str, Any]:
        """Kill, by id, what still lives."""
        for pid in [self.launcher, *self.ranks] if self._reap() else []:
            if _parent_of(pid) in (os.getpid(), self.launcher):
                os.kill(pid, signal.SIGKILL)
        return self.wait(10)

    def _reap(self) -> bool:
        """Return whether any process of the start lives; launcher and orphaned ranks are children of this process."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._alive.clear()  # the launcher has reaped its ranks, this process the launcher
                return False
            if pid == 0:
                return True
            self._alive.discard(pid)
            self._exit_codes[pid] = os.waitstatus_to_exitcode(status)


def _as_child(work: Callable[[], int]) -> NoReturn:
    """Run something in a forked process and end it without the parent's exit handlers and buffers."""
    code = 1
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _launch(request: Mapping[str, Any], report: int) -> int:
    """Be the launcher: fork the ranks, wait for them, take the others down when one has failed."""
    _write_to(Path(request["output"]))
    stop_signals.block()  # as launch.supervise starts a launcher
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    port = _free_port()
    me = os.getpid()
    ranks: list[int] = []
    for rank in range(request["world_size"]):
        pid = os.fork()
        if pid == 0:
            os.close(report)
            _as_child(lambda rank=rank: _train(request, rank, port, launcher=me))
        ranks.append(pid)
    with os.fdopen(report, "w") as pipe:
        print(json.dumps(ranks), file=pipe, flush=True)
        return _supervise(set(ranks), pipe)


def _train(request: Mapping[str, Any], rank: int, port: int, *, launcher: int) -> int:
    """Be one rank."""
    world_size = str(request["world_size"])
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **request["environment"],
    }
    if os.getppid() != launcher:
        return 1  # it died before `main` could tie this process to it
    return training.train.main(request["start"])


def _supervise(ranks: set[int], report: TextIO) -> int:
    """Return the first failing rank's exit code (a signal as 128 + its number), or 0, when all ranks have ended."""
    first_failure = 0
    deadline = float("inf")
    next_signal = signal.SIGTERM
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ranks.discard(pid)
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps([pid, code]), file=report, flush=True)
            if code and not first_failure:
                first_failure = code if code > 0 else 128 - code
                deadline = time.monotonic() + _PEER_SECONDS
        elif time.monotonic() > deadline:
            for rank in ranks:
                os.kill(rank, next_signal)
            next_signal, deadline = signal.SIGKILL, time.monotonic() + _TERMINATION_SECONDS
        else:
            time.sleep(0.002)
    return first_failure


def _parent_of(pid: int) -> int:
    """Return a process's parent, 0 if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _write_to(output: Path) -> None:
    """Send standard output and standard error of this process and its children to the end of a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _threads() -> list[str]:
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def main() -> int:
    """Serve until standard input ends; what then still lives is killed."""
    import_all_of_deepspeed()
    gc.freeze()  # the ranks' collections need not walk over what was imported
    if len(_threads()) > 1:
        raise RuntimeError(f"threads would be missing from what is forked here: {_threads()}")
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    start: Start | None = None
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            assert start is None or not start.wait(0)["left"], "one start at a time"
            start = Start(request)
            answer: dict[str, Any] = {"launcher": start.launcher, "ranks": start.ranks}
        else:
            assert start is not None, "nothing was started"
            answer = start.kill_all() if "kill_all" in request else start.wait(request["wait"])
        print(json.dumps(answer), flush=True)
    if start is not None:
        start.kill_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
