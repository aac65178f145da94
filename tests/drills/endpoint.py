"""An endpoint and its client that are killed, stopped and refused: all answers arrive, none is paid for in silence.

    python -m tests.drills.endpoint --count 200 --seed 0

A real server of a real model stands behind a proxy that answers 429 and 500 now and then and counts what a provider
would bill. The client is killed at random moments and started again; the server is killed and started again, or stopped
for seconds. In the end the answers are those of an undisturbed run, each was billed once, but for attempts that the
journal names, and a replay of the journal says the same without a socket.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.endpoint.journal import Journal
from tests.drills.endpoint_servers import REPOSITORY, ModelServer, Proxy
from tests.real_weights import SMOLLM2

KEY = "sk-drill-secret-0815"
_KEY_VARIABLE = "DRILL_ENDPOINT_KEY"
_TOKENS = 4
_FAULT_RATE = 0.12
_TIMEOUT_SECONDS = 4.0
_SILENT_SECONDS = 120.0
"""Longest time without enough new answers before the run has failed."""


@dataclass(kw_only=True)
class Tally:
    """What a drill did and saw."""

    requests: int = 0
    client_kills: int = 0
    server_kills: int = 0
    server_stops: int = 0
    refused: int = 0
    billed: int = 0
    billed_again: int = 0
    possibly_billed: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"endpoint: {self.requests} requests; client killed {self.client_kills} times, server killed "
            f"{self.server_kills} and stopped {self.server_stops} times, {self.refused} answers of 429 or 500; "
            f"{self.billed} answers billed, {self.billed_again} of them a second time, {self.possibly_billed} attempts "
            f"named as possibly billed; {len(self.problems)} problems"
        )


def main(argv: list[str]) -> int:
    """Run the drill and print its line."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.endpoint", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="requests")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    tally = drill(options.count, options.seed)
    print(*tally.problems, sep="\n", end="\n" if tally.problems else "")
    print(tally)
    return int(bool(tally.problems))


def drill(count: int, seed: int, *, between: tuple[int, int] = (3, 10)) -> Tally:
    """Ask so many questions twice, undisturbed and disturbed; `between` are the answers from one fault to the next."""
    tally, draw = Tally(requests=count), random.Random(seed)
    prompts = [f"Say the number {number}." for number in draw.sample(range(10_000), count)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        server = ModelServer(_free_port(), root / "server.log")
        try:
            server.start()
            server.wait()
            expected = _undisturbed(root, server, prompts)
            found, proxy, url = _disturbed(root, server, prompts, tally, draw, between)
        finally:
            server.kill()
        replayed = _replayed(root, url, prompts)
        _judge(root, tally, proxy, expected, found, replayed)
    return tally


def _undisturbed(root: Path, server: ModelServer, prompts: list[str]) -> dict[str, Any]:
    with Proxy(server, fault_rate=0.0, seed=0).serve() as url:
        client = _start(root, "undisturbed", url, prompts)
        client.wait(timeout=60 + 10 * len(prompts))
    return _result(root, "undisturbed")


def _disturbed(
    root: Path, server: ModelServer, prompts: list[str], tally: Tally, draw: random.Random, between: tuple[int, int]
) -> tuple[dict[str, Any], Proxy, str]:
    proxy = Proxy(server, fault_rate=_FAULT_RATE, seed=draw.randrange(2**32))
    with proxy.serve() as url:
        client = _start(root, "disturbed", url, prompts)
        try:
            faults = 0
            while _more_answers(client, proxy, draw.randint(*between)):
                time.sleep(draw.uniform(0.0, 0.4))  # into a question, or between two
                # One after the other, so that each kind comes; when is drawn.
                kind, faults = faults % 3, faults + 1
                if kind == 0 and client.poll() is None:
                    client.kill()
                    client.wait(timeout=60)
                    tally.client_kills += 1
                    client = _start(root, "disturbed", url, prompts)
                elif kind == 1:
                    server.signal(signal.SIGSTOP)
                    # Shorter and longer than the client waits for an answer.
                    time.sleep(draw.uniform(0.2, 1.5) * _TIMEOUT_SECONDS)
                    server.signal(signal.SIGCONT)
                    tally.server_stops += 1
                else:
                    server.kill()
                    tally.server_kills += 1
                    server.start()
            if client.wait(timeout=60):
                tally.problems.append(f"the client ended with {client.returncode}: {_words(root, 'disturbed')}")
        finally:
            client.kill()
            client.wait(timeout=60)
        proxy.wait_until_idle()
    tally.refused = proxy.refused
    return _result(root, "disturbed"), proxy, url


def _more_answers(client: subprocess.Popen[bytes], proxy: Proxy, number: int) -> bool:
    """Return True as soon as the model has given so many more answers; False if the client has ended."""
    # Not questions: while the server starts they only fail, and it would be killed before it answers any.
    goal, deadline = proxy.billed.total() + number, time.monotonic() + _SILENT_SECONDS
    while proxy.billed.total() < goal:
        if client.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _replayed(root: Path, url: str, prompts: list[str]) -> dict[str, Any]:
    client = _start(root, "disturbed", url, prompts, result="replayed", offline=True)
    client.wait(timeout=120)
    return _result(root, "replayed")


def _judge(
    root: Path,
    tally: Tally,
    proxy: Proxy,
    expected: dict[str, Any],
    found: dict[str, Any],
    replayed: dict[str, Any],
) -> None:
    problems = tally.problems
    if len(expected.get("answers", [])) != tally.requests:
        problems.append(f"the undisturbed client has no answers: {_words(root, 'undisturbed')}")
    for what, result in (("disturbed", found), ("replayed", replayed)):
        if result.get("answers") != expected.get("answers"):
            problems.append(f"the {what} answers are others: {_words(root, what)}")
    journal = Journal(root / "disturbed.jsonl", read_only=True)
    named = Counter(_body_key(sent.body) for sent in journal.possibly_billed)
    tally.billed, tally.possibly_billed = proxy.billed.total(), named.total()
    tally.billed_again = tally.billed - len(proxy.billed)
    if len(journal.answers) != tally.requests or len(proxy.billed) != tally.requests:
        problems.append(f"{len(journal.answers)} answers in the journal, {len(proxy.billed)} questions billed")
    problems += [
        f"a question was billed {number} times, and the journal names {named[key]} attempts that may be"
        for key, number in proxy.billed.items()
        if number > 1 + named[key]
    ]
    if found.get("possibly_billed") != tally.possibly_billed or found.get("uncounted") != 0:
        problems.append(f"the client's bill is {found}, the journal's {tally.possibly_billed} possibly billed")
    if proxy.keys_sent != {f"Bearer {KEY}"}:
        problems.append(f"the proxy was sent other keys: {proxy.keys_sent}")
    problems += [f"the API key is in {path.name}" for path in sorted(root.iterdir()) if KEY in _text(path)]


def _start(
    root: Path, name: str, url: str, prompts: list[str], *, result: str | None = None, offline: bool = False
) -> subprocess.Popen[bytes]:
    """Start a client; its journal has the given name, its result another one if it says so."""
    result = result or name
    endpoint = {
        "base_url": url,
        "model": str(SMOLLM2),
        "api": "chat",
        "journal": str(root / f"{name}.jsonl"),
        "key_env": _KEY_VARIABLE,
        "offline": offline,
        "concurrency": 2,
        "timeout_seconds": _TIMEOUT_SECONDS if name == "disturbed" else 120.0,
        "max_retries": 100,
        "backoff_seconds": 0.2,
        "max_wait_seconds": 2.0,
        "price_per_million_input_tokens": 1.0,
        "price_per_million_output_tokens": 5.0,
        "max_cost": 1.0,
    }
    settings = {"endpoint": endpoint, "prompts": prompts, "tokens": _TOKENS, "result": str(root / f"{result}.json")}
    path = root / f"{result}-settings.json"
    path.write_text(json.dumps(settings))
    environment = {name: value for name, value in os.environ.items() if name != _KEY_VARIABLE}
    environment |= {"OMP_NUM_THREADS": "1"} | ({} if offline else {_KEY_VARIABLE: KEY})
    with (root / f"{result}.log").open("ab") as log:
        command = [sys.executable, "-m", "tests.drills.endpoint_worker", str(path)]
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _result(root: Path, name: str) -> dict[str, Any]:
    path = root / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _body_key(body: Any) -> str:
    # httpx writes bodies in this form; names are in the order in which they were given.
    return hashlib.sha256(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _words(root: Path, name: str) -> str:
    return _text(root / f"{name}.log")[-1500:]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
