"""Run programs to their end, or to the end of their limits; output is read as it comes and never held beyond them."""

import os
import selectors
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from eval.sandbox.bubblewrap import Sandbox
from eval.sandbox.command_line import CODE
from eval.sandbox.limits import Ending, Limits, Ran

_PROGRAM = "program.py"
_CHUNK_BYTES = 65536
_SIGKILL_STATUS, _SIGXCPU_STATUS = 128 + 9, 128 + 24


@dataclass(kw_only=True)
class Output:
    """What comes out of one pipe of a sandbox, up to a limit."""

    descriptor: int
    source: Sandbox
    limit_bytes: int
    content: bytearray = field(default_factory=bytearray)
    overran: bool = False

    def take(self) -> bool:
        """Read what is there; False at the end. A sandbox that says too much is killed."""
        chunk = os.read(self.descriptor, _CHUNK_BYTES)
        room = self.limit_bytes - len(self.content)
        self.content += chunk[:room]
        if len(chunk) > room and not self.overran:
            self.overran = True
            self.source.kill()
        return bool(chunk)

    @property
    def text(self) -> str:
        """Return it as text; bytes that are not UTF-8 are replaced."""
        return self.content.decode(errors="replace")


def run_program(source: str, *, limits: Limits | None = None, stdin: str = "") -> Ran:
    """Return what became of a Python program that ran in a sandbox of its own, of which nothing is left.

    Raises:
        SandboxUnavailable: this host cannot isolate it; it was not run.
    """
    limits, begun = limits or Limits(), time.monotonic()
    with (
        _readable(stdin) as given,
        Sandbox({_PROGRAM: source}, [str(CODE / _PROGRAM)], limits, stdin=given) as sandbox,
    ):
        stdout, stderr = (
            Output(descriptor=descriptor, source=sandbox, limit_bytes=limits.output_bytes)
            for descriptor in (sandbox.stdout, sandbox.stderr)
        )
        in_time = follow(sandbox, [stdout, stderr], deadline=begun + limits.wall_seconds)
        exit_status = sandbox.wait()
    return Ran(
        ending=ending_of(exit_status, in_time=in_time, overran=stdout.overran or stderr.overran, words=stderr.text),
        exit_status=exit_status,
        stdout=stdout.text,
        stderr=stderr.text,
        wall_seconds=time.monotonic() - begun,
    )


def follow(sandbox: Sandbox, outputs: Sequence[Output], *, deadline: float) -> bool:
    """Read outputs until nothing of a sandbox is left; False if it had to be killed at the deadline (monotonic)."""
    in_time = True
    with selectors.DefaultSelector() as selector:
        for output in outputs:
            selector.register(output.descriptor, selectors.EVENT_READ, output)
        selector.register(sandbox.end_descriptor, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(deadline - time.monotonic(), 0.0) if in_time else None)
            for key, _ in ready:
                if isinstance(key.data, Output):
                    if not key.data.take():
                        selector.unregister(key.fd)
                elif len(ready) == 1:  # all is read that was written before the end
                    return in_time
            if in_time and time.monotonic() >= deadline:
                in_time = False
                sandbox.kill()


def ending_of(exit_status: int | None, *, in_time: bool, overran: bool, words: str) -> Ending:
    """Return why a program ended.

    Args:
        exit_status: as `Sandbox.wait` gives it.
        in_time: it was not killed at its deadline.
        overran: it wrote more than it may.
        words: what it wrote to stderr.
    """
    if overran:
        return Ending.output
    if not in_time:
        return Ending.wall_time
    if exit_status in (None, _SIGKILL_STATUS):
        return Ending.killed
    if exit_status == _SIGXCPU_STATUS:
        return Ending.cpu_time
    last_line = words.rstrip().rpartition("\n")[2]
    return Ending.memory if exit_status == 1 and last_line.startswith("MemoryError") else Ending.exited


@contextmanager
def _readable(text: str) -> Iterator[int]:
    """Give a descriptor from which a text can be read, and to which nothing can be written."""
    writable = os.memfd_create("stdin")
    try:
        with os.fdopen(writable, "wb", closefd=False) as file:
            file.write(text.encode())
        descriptor = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
