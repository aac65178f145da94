"""Servers that wandb, or anything else that reports, may meet instead of a good one; each gives its address."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """A port that refuses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"  # bound, but nobody listens


@contextlib.contextmanager
def tarpit() -> Iterator[str]:
    """A port that takes every connection and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def broken_server() -> Iterator[str]:
    """A server whose every answer is 500."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(500)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
