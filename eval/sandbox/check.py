"""Can this host run a model's programs in isolation? Asked before a run counts on it, by running what must not work."""

import json
import socket

from eval.sandbox.limits import Ending, Limits, SandboxUnavailable
from eval.sandbox.running import run_program

_TRIVIAL = "print(6 * 7)"
_CURIOUS = """
import errno, json, os, socket, sys

found = []
try:
    socket.create_connection(("127.0.0.1", int(input())), timeout=2)
    found.append("the network can be reached")
except OSError:
    pass
files = [name for name in ("/etc", "/home", "/proc", "/sys", "/usr/bin") if os.path.isdir(name) and os.listdir(name)]
files = [name for name in files if not sys.executable.startswith(name + "/")]
if files:
    found.append("the host's files can be read: " + ", ".join(files))
children = 0
try:
    while children < PROCESSES:
        if not os.fork():
            while True:
                pass
        children += 1
    found.append("the number of processes is not limited")
except OSError:
    pass
print(json.dumps(found))
"""


def check_sandbox() -> None:
    """Make sure that programs run here, and that they have no network, none of the host's files, and a limit.

    Raises:
        SandboxUnavailable: they do not; the message says what to do.
    """
    limits = Limits()
    ran = run_program(_TRIVIAL, limits=limits)
    if ran.ending is not Ending.exited or ran.stdout != "42\n":
        raise SandboxUnavailable(
            f"a trivial program does not run in isolation: {ran.ending}, {ran.exit_status}: {ran.stderr[-500:]}\n"
            "  -> is Python's own library whole, and readable for everybody?"
        )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        ran = run_program(_CURIOUS.replace("PROCESSES", str(limits.processes)), limits=limits, stdin=port)
    try:
        found = json.loads(ran.stdout)
    except ValueError:
        found = [f"it ended without an answer: {ran.ending}, {ran.stderr[-500:]}"]
    if found:
        raise SandboxUnavailable(
            f"a model's programs are not isolated on this host: {'; '.join(found)}\n"
            "  -> leave out the benchmarks that run code, or run them on another host"
        )
