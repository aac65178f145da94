"""What a program may use, and what became of it."""

import json
from dataclasses import dataclass
from enum import StrEnum

from training.errors import PreflightFailed

MEBIBYTE = 2**20


class SandboxUnavailable(PreflightFailed):
    """This host cannot run untrusted programs in isolation; none was run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one sandbox may use; a program that wants more gets an error, or ends.

    Together the processes of a sandbox hold at most `processes * memory_bytes + tmp_bytes`, besides the kernel's own
    memory for their pipes, sockets and, by far the most, empty files in /tmp.
    """

    wall_seconds: float = 10.0
    """Then everything in the sandbox is killed."""
    cpu_seconds: int = 5
    """Of each process."""
    memory_bytes: int = 512 * MEBIBYTE
    """Address space of each process."""
    processes: int = 4
    """At a time; threads count."""
    open_files: int = 64
    """Of each process."""
    file_bytes: int = 16 * MEBIBYTE
    """Of one file."""
    tmp_bytes: int = 32 * MEBIBYTE
    """Of /tmp, the only folder that can be written; 0 for none at all."""
    output_bytes: int = 64 * 1024
    """Of stdout, and of stderr; a program that writes more is killed."""

    def resource_limits(self) -> str:
        """Return name -> [soft, hard] of setrlimit(2), as JSON for `inside/first_program.py`."""
        return json.dumps(
            {
                "RLIMIT_AS": [self.memory_bytes, self.memory_bytes],
                # SIGXCPU at the first, which tells what happened, SIGKILL at the second.
                "RLIMIT_CPU": [self.cpu_seconds, self.cpu_seconds + 1],
                "RLIMIT_NPROC": [self.processes + 1, self.processes + 1],  # bwrap's own first process counts
                "RLIMIT_NOFILE": [self.open_files, self.open_files],
                "RLIMIT_FSIZE": [self.file_bytes, self.file_bytes],
                "RLIMIT_CORE": [0, 0],
                "RLIMIT_MEMLOCK": [0, 0],
                "RLIMIT_MSGQUEUE": [0, 0],
            }
        )


class Ending(StrEnum):
    """Why a program is no longer there."""

    exited = "exited"
    """It ended by itself, or by a signal of its own; the exit status says how."""
    wall_time = "wall time"
    cpu_time = "CPU time"
    memory = "memory"
    """It said MemoryError and ended; a program that catches the error ends otherwise."""
    output = "output"
    """It wrote more than was allowed."""
    killed = "killed"
    """By SIGKILL, but not ours: the kernel was out of memory, or the program sent it to itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """What became of a program."""

    ending: Ending
    exit_status: int | None
    """As a shell counts: 128 + the signal that ended it. None if bwrap was killed, too."""
    stdout: str
    """The beginning of what it wrote, up to the limit; bytes that are not UTF-8 are replaced."""
    stderr: str
    wall_seconds: float

    @property
    def timed_out(self) -> bool:
        """Whether it used up its time, of the clock or of the CPU."""
        return self.ending in (Ending.wall_time, Ending.cpu_time)
