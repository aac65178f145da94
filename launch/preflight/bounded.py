"""Checks that cannot hang the one who asks: each in a process group of its own, ended when its time is over.

A process in an uninterruptible wait (a dead NFS server, a driver that does not answer) does not die of SIGKILL. So
nobody waits for it: after its time it is killed, named, and left to the kernel.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from launch.preflight.findings import Finding, Status, finding_of
from training.plain_files import parse_json

Check = Callable[[], list[Finding]]
_LARGEST_BYTES = 2**20
_REAP_SECONDS = 0.5
"""A process that can die is gone by then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a command printed."""

    code: int
    stdout: str
    stderr: str


class ToolMissing(Exception):
    """A program is not installed."""


def tool(*command: str) -> Answer:
    """Return what a program answers; only within a check, which bounds its time.

    Raises:
        ToolMissing: it is not installed.
    """
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise ToolMissing(command[0]) from error
    return Answer(code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def run_all(checks: Mapping[str, Check], *, seconds: float) -> list[Finding]:
    """Return the findings of all checks, run at the same time; one that takes longer is a finding itself."""
    running = {name: _start(check) for name, check in checks.items()}
    deadline = time.monotonic() + seconds
    texts = {name: _read(pipe, deadline) for name, (_, pipe) in running.items()}
    for pid, pipe in running.values():
        os.close(pipe)
        _end(pid)
    return [finding for name, text in texts.items() for finding in _findings(name, text, seconds)]


def _start(check: Check) -> tuple[int, int]:
    """Return the process that runs a check, and the pipe that its findings come through."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            content = json.dumps([asdict(finding) for finding in check()])
            with os.fdopen(write_end, "w") as pipe:
                pipe.write(content)
        except BaseException as error:
            with os.fdopen(write_end, "w") as pipe:
                json.dump({"error": f"{type(error).__name__}: {error}"}, pipe)
        finally:
            os._exit(0)
    os.close(write_end)
    return pid, read_end


def _read(pipe: int, deadline: float) -> str | None:
    """Return all that comes through a pipe until its other end closes; None if it does not by then."""
    content = b""
    while len(content) <= _LARGEST_BYTES:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(pipe, 65536)
        if not piece:
            return content.decode(errors="replace")
        content += piece
    return ""


def _end(pid: int) -> None:
    """Kill what is left of a check without waiting for it."""
    for kill in (os.killpg, os.kill):  # it may not even have made its group yet
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _REAP_SECONDS
    while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.005)


def _findings(name: str, text: str | None, seconds: float) -> list[Finding]:
    expected = f"an answer within {seconds:g} s"
    if text is None:
        remedy = "what it looks at hangs: look at it by hand, reboot the node or leave it out"
        return [Finding(check=name, status=Status.fail, seen="no answer", expected=expected, remedy=remedy)]
    try:
        content = parse_json(text)
        if isinstance(content, list):
            return [finding_of(item) for item in content]
        seen = str(content["error"])
    except (ValueError, KeyError, TypeError):
        seen = f"an answer that is none: {text[:80]!r}"
    return [Finding(check=name, status=Status.fail, seen=seen, expected="a finding", remedy="look at it by hand")]


def first_line(text: str) -> str:
    """Return the first line that says something, cut to a table's width."""
    return next((line.strip()[:100] for line in text.splitlines() if line.strip()), "nothing")


def last_line(text: str) -> str:
    """Return the last line that says something, cut to a table's width."""
    return first_line("\n".join(reversed(text.splitlines())))
