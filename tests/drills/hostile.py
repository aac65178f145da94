"""The shape of a hostile program: one that tries to harm the host or to get out, as a model might write it.

It says ESCAPED if something worked that must not. Words in capitals that stand for the host's side (PORT, PARENT …) are
filled in by `host_watch`, which also knows what must be true of the host afterwards.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from eval.sandbox.limits import Ending, Ran


@dataclass(frozen=True, kw_only=True, slots=True)
class Hostile:
    """One program and how it must end."""

    name: str
    source: str
    endings: frozenset[Ending] = frozenset({Ending.exited})
    says: str = ""
    """Regular expression that its stdout must match somewhere."""
    limits: dict[str, Any] = field(default_factory=dict)
    exit_statuses: frozenset[int] = frozenset({0})
    """If it ends by itself: one that fails has not tried everything."""
    works_outside: bool = False
    """Run without a sandbox it does no harm, and must succeed: so it can tell."""

    def problems(self, ran: Ran) -> list[str]:
        """Return what it did that it must not, and how it ended if that is wrong."""
        found = [line for line in f"{ran.stdout}\n{ran.stderr}".splitlines() if "ESCAPED" in line]
        if ran.ending not in self.endings:
            found.append(f"it ended by {ran.ending}, not {sorted(self.endings)}: {ran.stderr[-300:]}")
        elif ran.ending is Ending.exited and ran.exit_status not in self.exit_statuses:
            found.append(f"it ended with {ran.exit_status}: {ran.stderr[-300:]}")
        if not re.search(self.says, ran.stdout):
            found.append(f"it said {ran.stdout[:200]!r}, not {self.says!r}")
        return found


TRY = """
import errno, os, sys

def attempt(what, call):
    try:
        result = call()
    except BaseException as error:
        return error
    print("ESCAPED:", what, repr(result)[:80])

"""
SYSCALL = (
    TRY
    + """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

def refused(name, number, *arguments, errors=(errno.EPERM,)):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    if result >= 0 or ctypes.get_errno() not in errors:
        print("ESCAPED:", name, result, os.strerror(ctypes.get_errno()))

"""
)
