"""System calls that fail or take longer, for processes of ours: strace."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_END_SECONDS = 30.0


def strace_works() -> bool:
    """Return whether there is an strace, and it may trace."""
    probe = ["strace", "-f", "--seccomp-bpf", "-e", "trace=fsync", "-o", "/dev/null", "true"]
    return shutil.which("strace") is not None and subprocess.run(probe, capture_output=True).returncode == 0


def slow_calls(name: str, *, seconds: float) -> list[str]:
    """Return the words before a command in which every call of a name is to take so much longer."""
    delay = f"inject={name}:delay_enter={int(seconds * 1e6)}"
    return ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={name}", "-e", delay]


@contextlib.contextmanager
def failing_calls(processes: Sequence[int], name: str, *, error: str, files: Sequence[Path] = ()) -> Iterator[None]:
    """Let every call of a name fail in living processes, on some files if they are given, until the block is left."""
    words = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:error={error}"]
    for file in files:
        words += ["-P", str(file)]
    for pid in processes:
        words += ["-p", str(pid)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as strace:
        try:
            assert strace.stderr is not None
            said = strace.stderr.readline()
            while "Requested path" in said:  # that it is not there yet
                said = strace.stderr.readline()
            if "attached" not in said:
                raise RuntimeError(f"strace could not be attached: {said}")
            yield
        finally:
            strace.terminate()  # it lets go of them
            strace.wait(timeout=_END_SECONDS)
