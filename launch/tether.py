"""Run a command and make sure that nothing of its process group outlives the process that started this one.

    python -m launch.tether COMMAND…

The kernel kills a child whose parent dies, but not the grandchildren: `deepspeed.launcher.runner` dies, its pdsh or
mpirun would go on, and with it all ranks on the other hosts. This process stands between: it is told of the parent's
death by SIGTERM, and then kills the group. Exit code: the command's (128 + N if signal N ended it).
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

_PR_SET_PDEATHSIG = 1
"""prctl(2), Linux."""


def main(command: Sequence[str]) -> int:
    """Run the command to its end and return its exit code; must be the leader of its process group."""
    parent = os.getppid()

    def look_for_parent(_number: int = 0, _frame: FrameType | None = None) -> None:
        # Signals of a person or a scheduler reach the whole group: the command decides what to do with them.
        if os.getppid() != parent:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, look_for_parent)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    process = subprocess.Popen(command)
    look_for_parent()  # it may have died before it could be watched
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
