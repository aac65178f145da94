"""What bubblewrap is told: new namespaces of every kind, in which only Python and the given files are to be seen.

Root first becomes nobody: the kernel limits root's processes in no way.
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from eval.sandbox.limits import Limits, SandboxUnavailable
from eval.sandbox.runtime import Runtime, others_can_reach

CODE = Path("/code")
"""Where the given files lie inside."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the host's programs are looked for; nothing else of the environment is passed on."""
_NOBODY = "65534"
_STAGE = Path("/mnt")
"""Where a runtime is bound that nobody cannot reach, in a mount namespace of its own: every Linux has this folder."""
_DEVICES = ("null", "zero", "random", "urandom")


def bwrap_command(runtime: Runtime, limits: Limits, contents: Mapping[str, int]) -> list[str]:
    """Return the command that makes a sandbox, up to what is told over descriptors and what runs inside.

    Args:
        runtime: the files of the host that are shown.
        limits: for the size of /tmp.
        contents: path below /code -> descriptor from which its content is read.

    Raises:
        SandboxUnavailable: a program that it needs is not installed.
    """
    prefix, seen_at = _unprivileged(runtime)
    bind = [argument for path in runtime.readable for argument in ("--ro-bind", seen_at(path), str(path))]
    for path in runtime.hidden:
        bind += ["--tmpfs", str(path), "--remount-ro", str(path)]
    for name in _DEVICES:
        bind += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for path, descriptor in contents.items():
        bind += ["--perms", "0444", "--ro-bind-data", str(descriptor), str(CODE / path)]
    folder = "/tmp" if limits.tmp_bytes else "/"
    if limits.tmp_bytes:
        bind += ["--size", str(limits.tmp_bytes), "--tmpfs", folder]
    library_folders = dict.fromkeys(str(library.parent) for library in runtime.shared_libraries)
    return [
        *prefix,
        *(_tool("bwrap"), "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup-try", "--uid", _NOBODY, "--gid", _NOBODY, "--hostname", "sandbox"),
        *("--new-session", "--die-with-parent", "--cap-drop", "ALL"),
        *("--clearenv", "--setenv", "HOME", folder, "--setenv", "LD_LIBRARY_PATH", ":".join(library_folders)),
        *(*bind, "--chdir", folder),
        *("--remount-ro", "/"),  # else the root, which lies in memory, could be filled
    ]


def _unprivileged(runtime: Runtime) -> tuple[list[str], Callable[[Path], str]]:
    """Return the command that makes root nobody, and where that user finds a file of the runtime."""
    if not _is_the_hosts_root():
        return [], str
    become = [_tool("setpriv"), f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--"]
    if all(others_can_reach(path) for path in runtime.readable):
        return become, str
    # root's own Python, such as one in /root: it is bound to where nobody can go, seen by this command alone.
    prefix = Path(sys.base_prefix).resolve()
    script = 'mount --bind "$0" "$1" && shift && exec "$@"'
    stage = [_tool("unshare"), "--mount", "--propagation=private", "--", _tool("sh"), "-c", script]

    def seen_at(path: Path) -> str:
        real = path.resolve()
        return str(_STAGE / real.relative_to(prefix) if real.is_relative_to(prefix) else real)

    return [*stage, str(prefix), str(_STAGE), *become], seen_at


def _is_the_hosts_root() -> bool:
    """Return whether the kernel limits none of this user's processes; the root of a user namespace it does limit."""
    if os.geteuid() != 0:
        return False
    maps = Path("/proc/self/uid_map").read_text().split()
    return maps[:2] == ["0", "0"]


def _tool(name: str) -> str:
    if path := shutil.which(name, path=PATH):
        return path
    package = "bubblewrap" if name == "bwrap" else "util-linux"
    raise SandboxUnavailable(f"a model's programs cannot be isolated: {name} is missing\n  -> install {package}")
