"""Whether this machine has what a sandbox needs; that it leaks is no reason to skip a test."""

from functools import cache

from eval.sandbox.limits import SandboxUnavailable
from eval.sandbox.running import run_program


@cache
def why_not() -> str | None:
    """Return why there can be no sandbox here, or None."""
    try:
        run_program("")
    except SandboxUnavailable as error:
        return str(error)
    return None
