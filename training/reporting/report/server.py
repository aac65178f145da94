"""The report of a run that goes on, over HTTP on this machine only.

The page may ask nobody but this server. The server answers nobody but pages of its own names (another page that
resolves to 127.0.0.1 brings its own name along), only reads, and hands out nothing but the page and the files of the
profiler that the run's records name.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from urllib.parse import unquote, urlsplit

from training.errors import AutarkyError
from training.reporting.report.live import LiveRun
from training.reporting.report.traces import open_inside

HOST = "127.0.0.1"
_NAMES = {"127.0.0.1", "localhost", "::1"}
_SLOWEST_CLIENT_SECONDS = 60.0
_BLOCK_BYTES = 2**20
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class ReportServer(ThreadingHTTPServer):
    """Serves one run on a port of 127.0.0.1; `serve_forever` and `shutdown` are the standard library's.

    Args:
        run: what is served.
        port: 0 takes one that is free.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, run: LiveRun, *, port: int) -> None:
        self.run = run
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """Where it can be opened."""
        return f"http://{HOST}:{self.server_address[1]}/"


def serve_until_told(server: ReportServer) -> None:
    """Serve until Ctrl-C or SIGTERM; then end without a word, whatever is still being sent."""
    told = threading.Event()
    with _signals(lambda *_: told.set()), server:
        thread = threading.Thread(target=server.serve_forever, name="report server")
        thread.start()
        told.wait()
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class _Handler(BaseHTTPRequestHandler):
    timeout = _SLOWEST_CLIENT_SECONDS
    protocol_version = "HTTP/1.1"
    server_version = "autarky"
    sys_version = ""

    def do_GET(self) -> None:
        if not self._is_asked_by_own_name():
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers only to 127.0.0.1 and localhost")
            return
        path = unquote(urlsplit(self.path).path)
        run = self._served.run
        try:
            if path == "/":
                self._send(run.page(), "text/html; charset=utf-8")
            elif path == "/state":
                self._send(f'{{"stamp": "{run.stamp()}"}}', "application/json")
            elif path == "/content":
                self._send(run.content_json(), "application/json")
            elif path[1:] in run.traces():
                self._send_file(path[1:])
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
        except (AutarkyError, OSError) as error:
            if isinstance(error, ConnectionError | TimeoutError):
                self.close_connection = True  # the reader has gone
            else:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    @property
    def _served(self) -> ReportServer:
        assert isinstance(self.server, ReportServer)
        return self.server

    def _is_asked_by_own_name(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        try:
            address = urlsplit(f"//{hosts[0]}") if len(hosts) == 1 else None
            return address is not None and address.hostname in _NAMES and address.port == self._served.server_address[1]
        except ValueError:
            return False

    def _send(self, text: str, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        content = text.encode()
        self._send_head(status, {"Content-Type": kind, "Content-Length": str(len(content))})
        self.wfile.write(content)

    def _send_file(self, path: str) -> None:
        with os.fdopen(open_inside(self._served.run.directory, path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            self._send_head(HTTPStatus.OK, head | {"Content-Disposition": "attachment"})
            while size and (block := file.read(min(size, _BLOCK_BYTES))):
                self.wfile.write(block)
                size -= len(block)
        self.close_connection |= size > 0  # it became shorter meanwhile: only the end of the connection can say so

    def _send_head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | _HEADERS).items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True
        self._send(f"{why}\n", "text/plain; charset=utf-8", status)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no GET request in one line, without the standard library's page that repeats the request."""
        del message, explain
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._refuse(status, status.phrase)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
        """Write nothing: a page asks every two seconds."""
