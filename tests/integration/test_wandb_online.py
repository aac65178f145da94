"""The wandb view against a real HTTP server on loopback that answers, stalls, dies and comes back.

Whatever it does, `Reporter.record` returns at once, closing is bounded and metrics.jsonl is whole; and the server has
every row once, at the latest after the next start or `send_to_wandb`.
"""

import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.wandb_log import assert_equal_to_the_log
from tests.unit.reporting.example_items import example_report, write_example_report
from tests.unit.reporting.example_run import STAGES, eval_record, records, step_record, write_frozen_config
from tests.wandb_server import WandbServer
from training.reporting import wandb_view
from training.reporting.metrics import read_metrics
from training.reporting.records import GateRecord, IncidentRecord, Record, StageRecord, StartRecord
from training.reporting.reporter import Reporter

LONGEST_MEDIAN_SECONDS = 0.001
"""Of `Reporter.record`; tens of microseconds on an idle machine."""
DONE = StageRecord(step=200, stage="run", event="done", layout="", attempt=0)


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    path = tmp_path / "demo-1"
    path.mkdir()
    return path


def open_reporter(run_directory: Path, mode: str = "online", **wandb: object) -> Reporter:
    write_frozen_config(run_directory, mode, **wandb)
    return Reporter.open(
        run_directory, run_id="demo-1", stages=STAGES, wandb_mode=mode, console_every_steps=1000, attempt=0
    )


def train(reporter: Reporter, steps: range) -> float:
    """Return the median seconds that a record held the trainer."""
    seconds = []
    for step in steps:
        begun = time.perf_counter()
        reporter.record(step_record(step))
        seconds.append(time.perf_counter() - begun)
        time.sleep(0.005)
    return statistics.median(seconds)


def wait_for(moment: Callable[[], bool], *, limit_seconds: float = 60) -> None:
    deadline = time.monotonic() + limit_seconds
    while not moment():
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.05)


def send(run_directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.reporting.send_to_wandb", str(run_directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def num_sent(run_directory: Path) -> int:
    done = send(run_directory)
    assert done.returncode == 0, done.stderr
    number, _, where = done.stdout.partition(" rows sent to ")
    assert where.endswith("/loopback/autarky-test/runs/demo-1\n")
    return int(number)


def test_a_run_over_several_starts_is_one_run_with_all_that_belongs_to_it(
    wandb_server: WandbServer, run_directory: Path
) -> None:
    write_example_report(run_directory / "eval" / "pretrain" / "quick.json")
    (run_directory / "environment.json").write_text('{"git_commit": "c0ffee", "packages": {"torch": "2.13.0"}}')
    hosts = {"node-1": "0-7", "node-2": "8-15"}
    start = StartRecord(
        step=0,
        stage="pretrain",
        attempt=0,
        launched_seconds=1e9,
        world_size=16,
        hosts=hosts,
        peak_flops_per_second=9.89e14,
        peak_source="data sheet",
        data_fingerprint="fe",
        tokenizer_hash="ed",
    )
    evaluation = replace(eval_record(60, "pretrain", 2.1), report="eval/pretrain/quick.json")
    hang = IncidentRecord(step=60, stage="pretrain", what="hang", message="rank 3", attempt=1)
    block = GateRecord(step=60, stage="pretrain", decision="block", reasons=["too high"], attempt=1)
    jobs: list[list[Record]] = [
        [start, *records(blocked=False)[:60]],
        [replace(start, attempt=1), *records(blocked=False)[60:80], evaluation, hang, block],
    ]
    for job in jobs:
        with open_reporter(run_directory, tags=["one", "two"], group="sweep-7") as reporter:
            for record in job:
                reporter.record(record)
    run = wandb_server.only_run()
    log = read_metrics(run_directory / "metrics.jsonl")
    assert len(run.history()) == len(log.records) == len(jobs[0]) + len(jobs[1])
    assert run.overwritten == []
    assert [row["_step"] for row in run.history()] == log.line_numbers
    steps = [row["step"] for row in run.history() if "train/loss" in row]
    assert steps == sorted(set(steps))
    config = run.values()
    assert config["start"]["rank_map"] == hosts
    assert (config["start"]["attempt"], config["start"]["data_fingerprint"]) == (1, "fe")
    assert config["environment"] == {"git_commit": "c0ffee", "packages": {"torch": "2.13.0"}}
    assert config["optimizer"] == {"lr": 0.001}
    assert config["layouts"]["pretrain"]["layout"].startswith("pipeline 2")
    assert (run.group, run.tags, run.project) == ("sweep-7", ["one", "two"], "autarky-test")
    assert [(alert["title"], alert["severity"]) for alert in run.alerts] == [
        ("hang", "ERROR"),
        ("gate: block", "ERROR"),
    ]
    assert run.exit_codes == [1, 1]
    assert run.events(), "no sample of the system came, of one a second"
    tables = [artifact for artifact in wandb_server.artifacts.values() if artifact["committed"]]
    assert len(tables) == len(example_report()["tasks"])
    assert all(artifact["files"] for artifact in tables)
    assert wandb_server.unknown == []


def test_alerts_can_be_left_out_and_are_not_sent_of_what_is_history(
    wandb_server: WandbServer, run_directory: Path
) -> None:
    hang = IncidentRecord(step=60, stage="pretrain", what="hang", message="rank 3", attempt=1)
    with open_reporter(run_directory, alerts=False) as reporter:
        reporter.record(hang)
    assert wandb_server.only_run().alerts == []
    with open_reporter(run_directory, "disabled") as reporter:
        reporter.record(hang)
    path = run_directory / "metrics.jsonl"
    head, _, last = path.read_text().rstrip("\n").rpartition("\n")
    time_text = last.split('"time": ')[1].split(",")[0]
    path.write_text(f"{head}\n{last.replace(time_text, str(float(time_text) - 7200))}\n")
    write_frozen_config(run_directory, "online")
    assert num_sent(run_directory) == 1
    assert wandb_server.only_run().alerts == []
    assert len(wandb_server.only_run().history()) == 2


@pytest.mark.parametrize("trouble", [WandbServer.stall, WandbServer.die])
@pytest.mark.parametrize("moment", ["at start", "mid-run"])
def test_a_server_in_trouble_costs_training_nothing_and_the_run_is_completed_later(
    trouble: Callable[[WandbServer], None],
    moment: str,
    wandb_server: WandbServer,
    run_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wandb_view, "CLOSE_TIMEOUT_SECONDS", 3.0)
    if moment == "at start":
        trouble(wandb_server)
    reporter = open_reporter(run_directory)
    first = train(reporter, range(1, 101))
    if moment == "mid-run":
        wait_for(lambda: bool(wandb_server.runs) and bool(wandb_server.only_run().history()))
        trouble(wandb_server)
    second = train(reporter, range(101, 201))
    reporter.record(DONE)
    with caplog.at_level(logging.WARNING):
        begun = time.monotonic()
        reporter.close()
        assert time.monotonic() - begun < 8
    assert max(first, second) < LONGEST_MEDIAN_SECONDS
    assert "training is not affected" in caplog.text
    assert len(read_metrics(run_directory / "metrics.jsonl").records) == 201

    if trouble is WandbServer.die:
        wandb_server.come_back()
    wandb_server.answer()
    num_rows = num_sent(run_directory)

    run = wandb_server.only_run()
    assert_equal_to_the_log(run, run_directory)
    assert num_rows == 201 if moment == "at start" else 0 < num_rows <= 201
    assert run.exit_codes[-1] == 0
    assert num_sent(run_directory) == 0, "what is there is not sent again"


def test_a_server_that_comes_back_during_the_run_gets_everything(
    wandb_server: WandbServer, run_directory: Path
) -> None:
    with open_reporter(run_directory) as reporter:
        train(reporter, range(1, 51))
        wait_for(lambda: bool(wandb_server.runs) and bool(wandb_server.only_run().history()))
        wandb_server.die()
        train(reporter, range(51, 101))
        wandb_server.come_back()
        train(reporter, range(101, 151))
        wait_for(lambda: len(wandb_server.only_run().history()) == 150)
    assert_equal_to_the_log(wandb_server.only_run(), run_directory)


def test_while_a_job_feeds_the_run_the_command_is_refused(wandb_server: WandbServer, run_directory: Path) -> None:
    with open_reporter(run_directory) as reporter:
        train(reporter, range(1, 6))
        wait_for(lambda: bool(wandb_server.runs))
        refused = send(run_directory)
    assert refused.returncode == 2
    assert "a job feeds wandb from it" in refused.stderr
    assert num_sent(run_directory) == 0
    assert_equal_to_the_log(wandb_server.only_run(), run_directory)
