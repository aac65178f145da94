"""What the endpoint drill asks: a real server of a real model, and a proxy before it that hurts and counts."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from tests.real_weights import SMOLLM2

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 180.0
_TOO_MANY, _BROKEN, _GATEWAY = 429, 500, 502


class ModelServer:
    """`transformers serve` of SmolLM2 on the loopback interface; may be stopped, killed and started again."""

    def __init__(self, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port, self._log = port, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        program = Path(sys.executable).with_name("transformers")
        command = [str(program), "serve", str(SMOLLM2), "--host", "127.0.0.1", "--port", str(self._port)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--device", "cpu", "--dtype", "float32"],
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False).is_success:
                    return
            assert self._process is not None
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"the model server does not start: {self._log.read_text(errors='replace')[-2000:]}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=60)


class _Listener(ThreadingHTTPServer):
    """Takes it calmly that whoever asks is killed."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Proxy:
    """Counts what a provider would bill: every question that the model has answered, whether the answer arrived or not.

    Some questions it answers itself: 429 with Retry-After, or 500. Those cost nothing.
    """

    def __init__(self, server: ModelServer, *, fault_rate: float, seed: int) -> None:
        self.billed: Counter[str] = Counter()
        """SHA-256 of a question's body -> how often the model has answered it."""
        self.questions = self.refused = 0
        self.keys_sent: set[str] = set()
        self._server, self._fault_rate, self._draw = server, fault_rate, random.Random(seed)
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._under_way = 0

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        """Give the address of the API."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                status, headers, answer = proxy.answer(self.path, content, self.headers.get("authorization", ""))
                with contextlib.suppress(ConnectionError):  # whoever asked was killed, or did not wait
                    self.send_response(status)
                    for name, value in {"content-length": str(len(answer)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
                """Say nothing."""

        with _Listener(("127.0.0.1", 0), Handler) as listener:
            thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{listener.server_address[1]}/v1"
            finally:
                listener.shutdown()
                thread.join()

    def answer(self, path: str, content: bytes, authorization: str) -> tuple[int, dict[str, str], bytes]:
        """Return what a question gets."""
        with self._lock:
            self.questions += 1
            self.keys_sent.add(authorization)
            fault = self._draw.random() / self._fault_rate if self._fault_rate else 1.0
            if fault < 1.0:
                self.refused += 1
                is_busy = fault < 0.5
                return (_TOO_MANY, {"retry-after": "0.2"}, b"busy") if is_busy else (_BROKEN, {}, b"broken")
            self._under_way += 1
        try:
            url = f"{self._server.url}{path}"
            headers = {"content-type": "application/json"}
            response = httpx.post(url, content=content, headers=headers, timeout=START_SECONDS, trust_env=False)
        except httpx.HTTPError as error:
            return _GATEWAY, {}, f"the server behind: {error!r}".encode()
        else:
            if response.is_success:
                with self._lock:
                    self.billed[hashlib.sha256(content).hexdigest()] += 1
            return response.status_code, {"content-type": "application/json"}, response.content
        finally:
            with self._idle:
                self._under_way -= 1
                self._idle.notify_all()

    def wait_until_idle(self) -> None:
        """Wait until nothing is under way: what was given up for lost may still be answered, and billed."""
        with self._idle:
            if not self._idle.wait_for(lambda: self._under_way == 0, START_SECONDS):
                raise RuntimeError("a question is still under way")
