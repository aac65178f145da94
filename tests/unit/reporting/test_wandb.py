import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.reporting.example_items import MARKUP, example_report, write_example_report
from tests.unit.reporting.example_run import STAGES, eval_record, records, step_record, write_frozen_config
from training.reporting import wandb_view
from training.reporting.metrics import read_metrics
from training.reporting.records import EvalRecord, Record
from training.reporting.reporter import Reporter
from training.reporting.wandb_rows import NAMESPACES, WandbRows


def _open(run_directory: Path, mode: str, attempt: int = 0) -> Reporter:
    write_frozen_config(run_directory, mode)
    return Reporter.open(
        run_directory, run_id="demo-1", stages=STAGES, wandb_mode=mode, console_every_steps=1000, attempt=attempt
    )


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    path = tmp_path / "demo-1"
    path.mkdir()
    return path


def _wandb_lines(run_directory: Path) -> list[list[dict]]:
    """Records of each offline fragment, in the order they were started."""
    paths = sorted((run_directory / "wandb").glob("offline-run-*/run-demo-1.wandb"))
    wandb_program = str(Path(sys.executable).with_name("wandb"))
    outputs = [
        subprocess.run(
            [wandb_program, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True
        ).stdout
        for path in paths
    ]
    return [[json.loads(line) for line in output.splitlines()] for output in outputs]


def _rows(lines: list[dict]) -> list[dict]:
    return [
        {key: value for key, value in line["history"]["item"].items() if key not in ("_timestamp", "_runtime")}
        for line in lines
        if line["type"] == "history"
    ]


def _expected(records: Sequence[Record]) -> list[dict]:
    rows = WandbRows()
    return [{"_step": line} | rows.row(record) for line, record in enumerate(records)]


def test_an_offline_run_holds_what_the_log_holds_also_after_a_restart(run_directory: Path):
    all_records = records(blocked=False)
    jobs = [all_records[:50], all_records[50:]]
    for attempt, job in enumerate(jobs):
        with _open(run_directory, "offline", attempt) as reporter:
            for record in job:
                reporter.record(record)
        time.sleep(1.1 * (attempt == 0))  # wandb names fragments by the second
    assert read_metrics(run_directory / "metrics.jsonl").records == all_records
    fragments = _wandb_lines(run_directory)
    expected = _expected(all_records)
    assert [_rows(lines) for lines in fragments] == [expected[:50], expected[50:]]
    start = next(line["run"] for line in fragments[0] if line["type"] == "run")
    assert (start["run_id"], start["project"], start["run_group"]) == ("demo-1", "autarky-test", "demo")
    assert start["config"]["update"]["optimizer"] == {"lr": 0.001}
    axes = {
        line["metric"].get("glob_name"): line["metric"].get("step_metric")
        for line in fragments[0]
        if line["type"] == "metric"
    }
    assert {axes[f"{namespace}/*"] for namespace in NAMESPACES} == {"step"}
    exits = [line["exit"].get("exit_code", 0) for lines in fragments for line in lines if line["type"] == "exit"]
    assert exits == [1, 0]  # only the second job ended with the run being done


def test_a_start_delivers_what_a_killed_follower_did_not(run_directory: Path):
    all_records = records(blocked=False)
    with _open(run_directory, "disabled") as reporter:  # no follower at all: the hardest kill
        for record in all_records[:30]:
            reporter.record(record)
    with _open(run_directory, "offline", attempt=1) as reporter:
        for record in all_records[30:]:
            reporter.record(record)
    assert _rows(_wandb_lines(run_directory)[0]) == _expected(all_records)


def test_a_server_that_cannot_be_reached_delays_no_step_and_bounds_the_end(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb_view, "CLOSE_TIMEOUT_SECONDS", 3.0)
    reporter = _open(run_directory, "online")
    start = time.monotonic()
    for step in range(1, 101):
        reporter.record(step_record(step))
    assert time.monotonic() - start < 2.0
    with caplog.at_level(logging.WARNING):
        start = time.monotonic()
        reporter.close()
        assert time.monotonic() - start < 6.0
    assert "wandb did not finish within 3 s; training is not affected" in caplog.text
    assert len(read_metrics(run_directory / "metrics.jsonl").records) == 100


def test_a_missing_key_is_said_once_while_training_goes_on(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(run_directory / "no-netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    reporter = _open(run_directory, "online")
    deadline = time.monotonic() + 60
    step = 0
    with caplog.at_level(logging.WARNING):
        while not caplog.records and time.monotonic() < deadline:
            step += 1
            reporter.record(step_record(step))
            time.sleep(0.05)
        reporter.record(step_record(step + 1))
        reporter.close()
    words = [r.getMessage() for r in caplog.records]
    assert [word.split(";")[0] for word in words] == ["wandb cannot be used in mode online for now"]
    assert words[0].endswith(f"python -m training.reporting.send_to_wandb {run_directory}")
    assert "No API key configured" in (run_directory / "logs" / "wandb.log").read_text()


def test_the_last_records_reach_wandb_when_the_trainer_is_killed(run_directory: Path):
    program = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from tests.unit.reporting.example_run import step_record\n"
        "from tests.unit.reporting.test_wandb import _open\n"
        "reporter = _open(Path(sys.argv[1]), 'offline')\n"
        "while not Path(sys.argv[1], 'wandb').exists(): time.sleep(0.01)\n"
        "for step in range(1, 4): reporter.record(step_record(step))\n"
        "reporter.before_commit()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", program, run_directory], env=environment, check=False)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        fragments = _wandb_lines(run_directory)
        if fragments and any(line["type"] == "exit" for line in fragments[0]):
            break
        time.sleep(0.5)
    assert _rows(_wandb_lines(run_directory)[0]) == _expected([step_record(step) for step in range(1, 4)])


def test_disabled_leaves_no_trace_of_wandb(run_directory: Path):
    with _open(run_directory, "disabled") as reporter:
        reporter.record(step_record(1))
    assert {path.name for path in run_directory.iterdir()} == {"config.yaml", "metrics.jsonl"}
    imported = "import sys; import training.reporting.reporter; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", imported], check=False).returncode == 0


def test_the_reporter_of_other_ranks_takes_everything_and_writes_nothing(
    run_directory: Path, capsys: pytest.CaptureFixture
):
    with Reporter.silent() as reporter:
        for record in records(blocked=False):
            reporter.record(record)
    assert capsys.readouterr() == ("", "")


def test_numbers_that_are_not_finite_do_not_stop_the_follower(run_directory: Path):
    with _open(run_directory, "offline") as reporter:
        reporter.record(replace(step_record(1), grad_norm=math.inf))
        reporter.record(step_record(2))
    rows = _rows(_wandb_lines(run_directory)[0])
    assert rows[0]["train/grad_norm"] == "Infinity"
    assert rows[1] == {"_step": 1} | WandbRows().row(step_record(2))


def _evaluations() -> list[EvalRecord]:
    record = eval_record(60, "pretrain", 2.11)
    metrics = record.metrics | {"cissp/acc": 0.625, "bfcl_multi_turn/pass_at_1/base": 0.5}
    between = "eval/pretrain/step-00000040/quick.json"
    return [
        replace(record, step=40, metrics=metrics, report=between, in_between=True),
        replace(record, metrics=metrics, report="eval/pretrain/quick.json"),
        replace(record, step=90, stage="anneal", report="eval/anneal/quick.json"),  # there is no such file
    ]


def test_items_of_a_training_stages_end_are_tables_beside_the_metrics_of_each_benchmark(run_directory: Path):
    write_example_report(run_directory / "eval" / "pretrain" / "quick.json")
    write_example_report(run_directory / "eval" / "pretrain" / "step-00000040" / "quick.json")
    evaluations = _evaluations()
    with _open(run_directory, "offline") as reporter:
        for record in evaluations:
            reporter.record(record)
    lines = _wandb_lines(run_directory)[0]
    between, end, without = _rows(lines)
    assert [between, without] == [*_expected([evaluations[0]]), _expected(evaluations)[2]]
    assert end["eval/quick/cissp/acc"] == 0.625
    assert end["eval/quick/bfcl_multi_turn/pass_at_1/base"] == 0.5
    assert {key for key in end if key.endswith("per_item._type")} == {
        f"eval/quick/{task}/per_item._type" for task in example_report()["tasks"]
    }
    assert "the items of eval/anneal/quick.json are not in wandb" in (run_directory / "logs" / "wandb.log").read_text()
    (files,) = (run_directory / "wandb").glob("offline-run-*/files")
    table = json.loads((files / end["eval/quick/regex_match/per_item.path"]).read_text())
    assert table["columns"] == ["after", "id", "acc", "prompt", "answer", "target"]
    assert len(table["data"]) == 203
    assert table["data"][0] == ["pretrain", "markup", 0.0, "Question markup: yes or no?", MARKUP, MARKUP]
    staged = [line["artifact"]["manifest"]["contents"] for line in lines if line["type"] == "artifact"]
    paths = [Path(content["local_path"]) for contents in staged for content in contents]
    assert len(paths) == len(example_report()["tasks"])
    assert all(path.is_relative_to(run_directory) and path.is_file() for path in paths)  # for `wandb sync`


def test_where_tables_cannot_be_kept_the_numbers_are_logged(run_directory: Path, monkeypatch: pytest.MonkeyPatch):
    (run_directory / "a file").write_text("where a folder should be")
    monkeypatch.setenv("WANDB_DATA_DIR", str(run_directory / "a file"))
    write_example_report(run_directory / "eval" / "pretrain" / "quick.json")
    _, end, _ = _evaluations()
    with _open(run_directory, "offline") as reporter:
        reporter.record(end)
        reporter.record(step_record(61))
    assert _rows(_wandb_lines(run_directory)[0]) == _expected([end, step_record(61)])
    assert "the items of pretrain are not in wandb" in (run_directory / "logs" / "wandb.log").read_text()
