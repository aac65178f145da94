"""What is true of the host while hostile programs run on it, and after."""

import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_LOOK_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Bait:
    """What hostile programs are after."""

    secret: str
    """In the canary files and in an environment variable."""
    canaries: tuple[Path, ...]
    listener: socket.socket
    datagrams: socket.socket
    unix_listeners: dict[str | bytes, socket.socket]

    def filled_in(self, source: str) -> str:
        """Return a program that knows where to find all of it."""
        words = {
            "UNIX_ADDRESSES": repr(list(self.unix_listeners)),
            "CANARIES": repr([str(path) for path in self.canaries]),
            "PORT": str(self.listener.getsockname()[1]),
            "PARENT": str(os.getpid()),
            "REPOSITORY": repr(os.getcwd()),
            "HOME": repr(str(Path.home())),
        }
        for word, value in words.items():
            source = source.replace(word, value)
        return source

    def harm(self) -> Iterator[str]:
        """Yield a sentence for everything that was taken."""
        for path in self.canaries:
            try:
                if path.read_text() != self.secret:
                    yield f"{path} was changed"
            except OSError as error:
                yield f"{path} is gone: {error}"
        for name, listener in {"TCP": self.listener, **self.unix_listeners}.items():
            try:
                listener.accept()[0].close()
                yield f"{name!r} got a connection"
            except BlockingIOError:
                pass
        with suppress(BlockingIOError):
            yield f"a datagram came: {self.datagrams.recv(100)!r}"


@contextmanager
def bait() -> Iterator[Bait]:
    """Put canaries in /tmp, in HOME, in the current folder and in the environment, and listen; all is gone after."""
    secret = f"canary of the host {secrets.token_hex(16)}"
    with ExitStack() as stack:
        canaries = []
        for folder in (tempfile.gettempdir(), str(Path.home()), os.getcwd()):
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", dir=folder, prefix=".sandbox-canary-"))
            file.write(secret)
            file.flush()
            canaries.append(Path(file.name))
        os.environ["SANDBOX_DRILL_SECRET"] = secret
        stack.callback(os.environ.pop, "SANDBOX_DRILL_SECRET")
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(listener.getsockname())
        unix: dict[str | bytes, socket.socket] = {}
        for address in (f"{folder}/socket", b"\0sandbox-drill-" + secrets.token_hex(8).encode()):
            unix[address] = stack.enter_context(socket.socket(socket.AF_UNIX))
            unix[address].bind(address)
            unix[address].listen()
        for each in (listener, datagrams, *unix.values()):
            each.setblocking(False)
        yield Bait(secret=secret, canaries=tuple(canaries), listener=listener, datagrams=datagrams, unix_listeners=unix)


class Watch:
    """Counts processes in namespaces below ours, and their memory, while a block runs; others' do not count."""

    def __init__(self) -> None:
        self.most_processes = 0
        self.most_bytes = 0
        self._before = set(_inside())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def left(self) -> list[int]:
        """Return processes that are still there."""
        return sorted(set(_inside()) - self._before)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            found = {pid: size for pid, size in _inside().items() if pid not in self._before}
            self.most_processes = max(self.most_processes, len(found))
            self.most_bytes = max(self.most_bytes, sum(found.values()))
            time.sleep(_LOOK_SECONDS)


def _inside() -> dict[int, int]:
    """Return process id -> bytes of its own memory, of all processes in a pid namespace below ours."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                lines = Path("/proc", entry, "status").read_text().splitlines()
            except OSError:
                continue  # it ended meanwhile
            status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
            if len(status["NSpid"]) > 1 and status["State"][0] != "Z":
                found[int(entry)] = int(status.get("RssAnon", ["0"])[0]) * 1024
    return found
