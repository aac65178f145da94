"""A server on the loopback interface that answers as it is told, for faults that no real one has on demand."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


def answer(text: str, *, usage: tuple[int, int] | None = (3, 2)) -> Reply:
    """What a chat endpoint says."""
    values: dict[str, Any] = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    if usage is not None:
        values["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return 200, {}, json.dumps(values).encode()


@dataclass
class Scripted:
    """What the server was sent, and where it is."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def scripted_server(reply: Callable[[dict[str, Any], int], Reply | None]) -> Iterator[Scripted]:
    """Serve what `reply` makes of each body and its number; None: close the connection without a word."""
    scripted, lock = Scripted(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                number = len(scripted.bodies)
                scripted.bodies.append(body)
                scripted.headers.append({name.lower(): value for name, value in self.headers.items()})
            replied = reply(body, number)
            if replied is None:
                self.close_connection = True
                return
            status, headers, content = replied
            self.send_response(status)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # whoever asked may not have waited
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        scripted.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield scripted
        finally:
            server.shutdown()
            thread.join()
