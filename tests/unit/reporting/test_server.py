"""The live report: what it answers, whom it refuses, that it reads on instead of anew, and that it ends when told."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.reporting.example_full_run import TRACE, write_full_example
from tests.unit.reporting.example_run import step_record
from training.errors import ConfigError, ExitCode
from training.reporting.metrics import MetricsLog
from training.reporting.records import ProfileRecord
from training.reporting.report.live import LiveRun
from training.reporting.report.server import HOST, ReportServer


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return write_full_example(tmp_path / "demo")


@pytest.fixture
def server(run_directory: Path) -> Iterator[ReportServer]:
    with ReportServer(LiveRun(run_directory), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: ReportServer, path: str, *, host: str | None = None, method: str = "GET"
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and content of an answer; the path goes out as it is."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", f"{HOST}:{port}" if host is None else host)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def append(run_directory: Path, step: int) -> None:
    log = MetricsLog(run_directory / "metrics.jsonl")
    log.append(step_record(step, stage="long_context", attempt=2))
    log.close()


def test_the_page_may_ask_only_its_own_server(server: ReportServer) -> None:
    status, headers, content = ask(server, "/")
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert b"; connect-src &#39;self&#39;" in content or b"; connect-src 'self'" in content
    assert b"default-src 'none'" in content
    assert b'data-live="1"' in content


def test_new_steps_change_the_stamp_and_are_read_on_not_anew(server: ReportServer, run_directory: Path) -> None:
    first = json.loads(ask(server, "/content")[2])
    assert first["figures"]["loss"]["figure"]["data"][2]["x"][-1] == 110
    before = server.run._reader.offset_bytes
    assert before == (run_directory / "metrics.jsonl").stat().st_size
    append(run_directory, 111)
    server.run._rests_until_seconds = 0.0
    state = json.loads(ask(server, "/state")[2])
    assert state["stamp"] != first["stamp"]
    second = json.loads(ask(server, "/content")[2])
    assert second["stamp"] == state["stamp"]
    assert second["figures"]["loss"]["figure"]["data"][2]["x"][-1] == 111
    assert server.run._reader.offset_bytes - before == len((run_directory / "metrics.jsonl").read_bytes()) - before
    assert len(server.run._records) == len((run_directory / "metrics.jsonl").read_text().splitlines())


def test_a_run_that_took_long_to_draw_is_not_drawn_again_at_once(server: ReportServer, run_directory: Path) -> None:
    stamp = json.loads(ask(server, "/content")[2])["stamp"]
    server.run._rests_until_seconds = float("inf")
    append(run_directory, 111)
    assert json.loads(ask(server, "/state")[2])["stamp"] == stamp
    assert json.loads(ask(server, "/content")[2])["stamp"] == stamp


def test_a_log_that_began_anew_is_read_from_its_start(run_directory: Path) -> None:
    run = LiveRun(run_directory)
    run.content_json()
    (run_directory / "metrics.jsonl").unlink()
    append(run_directory, 1)
    run._rests_until_seconds = 0.0
    figures = json.loads(run.content_json())["figures"]
    assert figures["loss"]["figure"]["data"][0]["x"] == [1]


@pytest.mark.parametrize("host", ["example.org", "example.org:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1", "a b"])
def test_a_page_of_another_name_gets_nothing(server: ReportServer, host: str) -> None:
    status, _, content = ask(server, "/", host=host.format(port=server.server_address[1]))
    assert status == 403
    assert b"demo" not in content


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_its_own_names_are_answered(server: ReportServer, name: str) -> None:
    assert ask(server, "/state", host=f"{name}:{server.server_address[1]}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "X<script>"])
def test_nothing_but_get_is_answered(server: ReportServer, method: str) -> None:
    status, _, content = ask(server, "/", method=method)
    assert status == 405
    assert b"script" not in content


def test_of_the_files_only_traces_that_records_name_are_handed_out(server: ReportServer, run_directory: Path) -> None:
    status, headers, content = ask(server, f"/{TRACE}")
    assert status == 200
    assert content == (run_directory / TRACE).read_bytes()
    assert headers["Content-Disposition"] == "attachment"
    (run_directory / "profiles" / "other").write_text("x")
    for path in (
        "/config.yaml",
        "/metrics.jsonl",
        "/profiles/other",
        "/profiles/../metrics.jsonl",
        "/%2e%2e/demo/metrics.jsonl",
        "//etc/passwd",
        "/profiles/%00",
        "/profiles",
    ):
        assert ask(server, path)[0] == 404, path


def test_traces_that_records_name_outside_or_behind_links_are_not(run_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (run_directory / "profiles" / "link").symlink_to(tmp_path / "secret")
    lines = (run_directory / "metrics.jsonl").read_text().splitlines()
    (line,) = [line for line in lines if f'"kind": "{ProfileRecord.kind}"' in line]
    more = [line.replace(TRACE, path) for path in ("profiles/link", "../secret", "/etc/hostname")]
    (run_directory / "metrics.jsonl").write_text("\n".join([*lines, *more]) + "\n")
    with ReportServer(LiveRun(run_directory), port=0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        assert ask(server, "/profiles/link")[0] == 503  # named, but nothing is read through it
        assert ask(server, "/../secret")[0] == 404
        assert ask(server, "//etc/hostname")[0] == 404
        server.shutdown()


def test_it_listens_on_this_machine_only(server: ReportServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.socket.family is socket.AF_INET


def test_a_directory_that_is_no_runs_and_a_taken_port_are_refused(server: ReportServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no metrics\.jsonl"):
        LiveRun(tmp_path)
    command = [sys.executable, "-m", "training.reporting", server.run.directory, "--serve", "--port"]
    taken = subprocess.run([*command, str(server.server_address[1])], capture_output=True, text=True, check=False)
    assert taken.returncode == ExitCode.BAD_CONFIG
    assert "in use" in taken.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_and_ends_without_a_word_when_told(run_directory: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "training.reporting", str(run_directory), "--serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().split()[0]
        port = int(address.rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        connection.request("GET", "/")  # and keeps the connection
        assert connection.getresponse().status == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, "", "")


def test_the_offset_only_moves_over_whole_lines(run_directory: Path) -> None:
    run = LiveRun(run_directory)
    run.content_json()
    whole = run._reader.offset_bytes
    with (run_directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')
    run._rests_until_seconds = 0.0
    assert "unreadable" not in json.loads(run.content_json())["body"]
    assert run._reader.offset_bytes == whole


def test_steps_done_again_replace_those_before(run_directory: Path) -> None:
    run = LiveRun(run_directory)
    log = MetricsLog(run_directory / "metrics.jsonl")
    log.append(replace(step_record(110, stage="long_context", attempt=3), loss=7.5))
    log.close()
    curve = json.loads(run.content_json())["figures"]["loss"]["figure"]["data"][2]
    assert (curve["x"][-1], curve["y"][-1]) == (110, 7.5)
