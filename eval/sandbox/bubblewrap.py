"""One sandbox: processes in namespaces of their own, all of which end together, and with whoever started them.

`bwrap` makes the namespaces (`command_line`) and loads the filter of `system_calls`; `inside/first_program.py` takes
the limits and becomes the script.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from eval.sandbox.command_line import CODE, PATH, bwrap_command
from eval.sandbox.limits import Limits, SandboxUnavailable
from eval.sandbox.runtime import python_runtime
from eval.sandbox.system_calls import write_filter

_FIRST_PROGRAM = "first_program.py"
_PYTHON_OPTIONS = ("-I", "-S", "-B", "-X", "utf8")
_START_SECONDS = 60.0
_END_SECONDS = 60.0
_LOOK_SECONDS = 0.001


class Sandbox:
    """Running processes in isolation. Use it as a context manager, after which none of them is left.

    They end, too, when the thread that made them ends, or its process is killed.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        arguments: Sequence[str],
        limits: Limits,
        *,
        stdin: int,
        stdout: int = subprocess.PIPE,
    ) -> None:
        """Start Python in a new sandbox.

        Args:
            files: path below /code -> content.
            arguments: of the interpreter: a script and its arguments.
            limits: what everything in it may use.
            stdin: descriptor to read from; it remains the caller's to close.
            stdout: descriptor to write to, likewise; without it, `stdout` gives what was written.

        Raises:
            SandboxUnavailable: this host cannot isolate it; no line of it was run.
        """
        runtime = python_runtime()
        files = {**files, _FIRST_PROGRAM: (Path(__file__).parent / "inside" / _FIRST_PROGRAM).read_text()}
        status, status_end = os.pipe()
        self._status = os.fdopen(status, "rb")
        go, go_end = os.pipe()
        with ExitStack() as ours:
            ours.callback(os.close, go)
            ours.callback(os.close, go_end)
            with ExitStack() as only_bwraps:
                only_bwraps.callback(os.close, status_end)
                filter_descriptor = _in_memory("", only_bwraps)
                write_filter(filter_descriptor)
                contents = {path: _in_memory(text, only_bwraps) for path, text in files.items()}
                self._bwrap = subprocess.Popen(
                    [
                        *bwrap_command(runtime, limits, contents),
                        *("--seccomp", str(filter_descriptor), "--json-status-fd", str(status_end)),
                        *("--", str(runtime.python), *_PYTHON_OPTIONS, str(CODE / _FIRST_PROGRAM)),
                        *(str(go), limits.resource_limits(), *_PYTHON_OPTIONS, *arguments),
                    ],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    env={"PATH": PATH},
                    cwd="/",
                    pass_fds=(filter_descriptor, status_end, go, *contents.values()),
                )
            try:
                self.end_descriptor = self._first_process()
                """Becomes readable when no process of the sandbox is left."""
            except BaseException:
                self._bwrap.kill()
                self._close()
                raise
            os.write(go_end, b"\n")

    @property
    def stdout(self) -> int:
        """The descriptor that gives what is written, if no other was given to write to."""
        assert self._bwrap.stdout is not None
        return self._bwrap.stdout.fileno()

    @property
    def stderr(self) -> int:
        """The descriptor that gives what is written to stderr; bwrap writes there, too, if it fails."""
        assert self._bwrap.stderr is not None
        return self._bwrap.stderr.fileno()

    def kill(self) -> None:
        """Kill all that is in it: with its first process the kernel ends a namespace's other ones."""
        with suppress(ProcessLookupError):  # nothing is left that could be killed
            signal.pidfd_send_signal(self.end_descriptor, signal.SIGKILL)

    def wait(self) -> int | None:
        """Return the exit status when no process is left: 128 + the signal that ended it, None if it was killed.

        Raises:
            SandboxUnavailable: bwrap ended before it started anything.
        """
        code = self._bwrap.wait(_END_SECONDS)
        select.select([self.end_descriptor], [], [], _END_SECONDS)
        for report in map(json.loads, self._status.read().splitlines()):
            if "exit-code" in report:
                return report["exit-code"]
        if code == 1:  # with words of its own on stderr
            raise SandboxUnavailable(_cannot("bwrap ended before it began the program"))
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        select.select([self.end_descriptor], [], [], _END_SECONDS)
        os.close(self.end_descriptor)
        self._close()

    def _first_process(self) -> int:
        """Return a descriptor of the first process inside, bwrap's own, once that is sure to die with bwrap.

        It asks the kernel for that after all is set up, and right before it loads the filter of system calls. Were we
        killed earlier, it would live on; so the program inside waits for a word of ours that comes only after this.
        """
        deadline = time.monotonic() + _START_SECONDS
        if select.select([self._status], [], [], _START_SECONDS)[0] and (line := self._status.readline()):
            process_id = int(json.loads(line)["child-pid"])
            while self._bwrap.poll() is None and time.monotonic() < deadline:
                with suppress(OSError):  # it has ended, and bwrap ends, too
                    if _filters(process_id) > _filters(os.getpid()):
                        return os.pidfd_open(process_id)  # it waits for us, so it is still the same one
                time.sleep(_LOOK_SECONDS)
        self._bwrap.kill()
        said = os.read(self.stderr, 2000).decode(errors="replace").strip()
        raise SandboxUnavailable(_cannot(said or f"bwrap made no sandbox within {_START_SECONDS:g} s"))

    def _close(self) -> None:
        self._bwrap.wait(_END_SECONDS)
        for file in (self._bwrap.stdout, self._bwrap.stderr, self._status):
            if file is not None:
                file.close()


def _filters(process_id: int) -> int:
    """Return how many filters of system calls a process has; it inherits those of a container."""
    status = Path("/proc", str(process_id), "status").read_text().split()
    if "Seccomp_filters:" not in status:
        raise SandboxUnavailable(_cannot(f"Linux {os.uname().release} is too old; 5.9 tells of system call filters"))
    return int(status[status.index("Seccomp_filters:") + 1])


def _in_memory(text: str, closed_with: ExitStack) -> int:
    """Return the descriptor of a file that no folder holds, to be read from its beginning."""
    descriptor = os.memfd_create("sandbox")
    closed_with.callback(os.close, descriptor)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(text.encode(errors="surrogatepass"))  # what is no text fails inside
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _cannot(what: str) -> str:
    return (
        f"a model's programs cannot be isolated on this host: {what}\n"
        "  -> it needs bubblewrap 0.8 or newer, and user namespaces for ordinary users:\n"
        "     sysctl user.max_user_namespaces, on Ubuntu kernel.apparmor_restrict_unprivileged_userns,\n"
        "     in a container a runtime that allows them;\n"
        "     or leave out the benchmarks that run code"
    )
