"""One suite on our engine, on the same weights in transformers, and behind a real HTTP server; compared."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.endpoint_servers import ModelServer
from tests.integration.running import run_to_end
from training.errors import ExitCode

SUITE = [
    "suite=both",
    "+eval.suites.both.benchmarks={regex_match: {items: 6, max_new_tokens: 4}, "
    "bfcl_simple: {items: 2, max_new_tokens: 12}}",
    "eval.suites.both.max_length=1024",
]
RUN = [sys.executable, "-m", "eval.run", *SUITE]
ENDPOINT = """
base_url: {url}/v1
model: {model}
journal: journal.jsonl
api: completions
price_per_million_input_tokens: 1.0
price_per_million_output_tokens: 3.0
max_cost: 1.0
concurrency: 1
extra_body: {{seed: null}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("partner")


@pytest.fixture(scope="module")
def server(folder: Path, smollm2: Path) -> Iterator[ModelServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ModelServer(port, folder / "server.log")
    server.start()
    server.wait()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def reports(folder: Path, server: ModelServer, smollm2: Path, prepared_benchmarks: Path) -> dict[str, Path]:
    """Who ran the model -> the report."""
    endpoint = folder / "endpoint.yaml"
    endpoint.write_text(ENDPOINT.format(url=server.url, model=smollm2))
    models = {
        "ours": f"checkpoint=hf:{smollm2}",
        "transformers": f"partner=hf:{smollm2}",
        "endpoint": f"partner=endpoint:{endpoint}",
    }
    found = {}
    for name, model in models.items():
        found[name] = folder / f"{name}.json"
        command = [*RUN, model, f"data.prepared_root={prepared_benchmarks}", f"output={found[name]}"]
        finished = run_to_end(command, folder=folder)
        assert finished.exit_code == 0, finished.explain()
    return found


def answers(report: Path) -> list[str]:
    tasks = json.loads(report.read_text())["tasks"]
    return [str(item["answer"]) for name in sorted(tasks) for item in tasks[name]["items"]]


def test_all_three_say_the_same(reports: dict[str, Path]) -> None:
    ours = answers(reports["ours"])
    assert len(ours) == 8
    assert answers(reports["transformers"]) == ours
    assert answers(reports["endpoint"]) == ours


def test_what_the_endpoint_cost_stands_in_its_report(reports: dict[str, Path]) -> None:
    throughput = json.loads(reports["endpoint"].read_text())["throughput"]
    assert throughput["generated_tokens"] > 0
    assert throughput["cost"] > 0
    assert throughput["cost_per_million_tokens"] > 0
    assert throughput["possibly_billed_twice"] == 0


def test_a_replay_opens_no_connection_and_finds_the_same(
    reports: dict[str, Path], folder: Path, server: ModelServer, prepared_benchmarks: Path
) -> None:
    server.kill()
    endpoint = folder / "endpoint.yaml"
    endpoint.write_text(endpoint.read_text() + "offline: true\n")
    command = [*RUN, f"partner=endpoint:{endpoint}", f"data.prepared_root={prepared_benchmarks}"]
    command.append(f"output={folder / 'replayed.json'}")
    finished = run_to_end(command, folder=folder)
    assert finished.exit_code == 0, finished.explain()
    assert answers(folder / "replayed.json") == answers(reports["endpoint"])


def test_the_comparison_says_that_eight_items_are_too_few(reports: dict[str, Path], folder: Path) -> None:
    command = [sys.executable, "-m", "eval.compare", str(reports["ours"]), str(reports["endpoint"])]
    finished = run_to_end(command, folder=folder)
    assert finished.exit_code == ExitCode.GATE_BLOCKED, finished.explain()
    assert "not enough data" in finished.stdout
    assert "more items would tell" in finished.stdout
    finished = run_to_end([*command, "--margin", "1.0"], folder=folder)
    assert finished.exit_code == 0, finished.explain()
    assert "yes" in finished.stdout
