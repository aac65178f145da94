import json
import logging
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.reporting.example_items import MARKUP, example_report, write_example_report
from tests.unit.reporting.example_run import STAGES, eval_record, records, step_record
from training.reporting import wandb_view
from training.reporting.metrics import read_metrics
from training.reporting.records import EvalRecord
from training.reporting.reporter import Reporter
from training.reporting.wandb_follower import wandb_row


def _open(run_directory: Path, mode: str, attempt: int = 0) -> Reporter:
    return Reporter.open(
        run_directory,
        run_id="demo-1",
        config={"optimizer": {"lr": 0.001}, "name": "demo"},
        stages=STAGES,
        wandb_mode=mode,
        wandb_project="autarky-test",
        wandb_entity=None,
        console_every_steps=1000,
        attempt=attempt,
    )


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
        {key: value for key, value in line["history"]["item"].items() if not key.startswith("_")}
        for line in lines
        if line["type"] == "history"
    ]


def test_an_offline_run_holds_what_the_log_holds_also_after_a_restart(tmp_path: Path):
    all_records = records(blocked=False)
    jobs = [all_records[:50], all_records[50:]]
    for attempt, job in enumerate(jobs):
        with _open(tmp_path, "offline", attempt) as reporter:
            for record in job:
                reporter.record(record)
        time.sleep(1.1 * (attempt == 0))  # wandb names fragments by the second
    assert read_metrics(tmp_path / "metrics.jsonl").records == all_records
    fragments = _wandb_lines(tmp_path)
    assert [_rows(lines) for lines in fragments] == [[wandb_row(record) for record in job] for job in jobs]
    start = next(line["run"] for line in fragments[0] if line["type"] == "run")
    assert (start["run_id"], start["project"]) == ("demo-1", "autarky-test")
    assert start["config"]["update"]["optimizer"] == {"lr": 0.001}
    axes = {
        line["metric"].get("glob_name"): line["metric"].get("step_metric")
        for line in fragments[0]
        if line["type"] == "metric"
    }
    assert axes["train/*"] == axes["eval/*"] == "step"
    exits = [line["exit"].get("exit_code", 0) for lines in fragments for line in lines if line["type"] == "exit"]
    assert exits == [1, 0]  # only the second job ended with the run being done


def test_a_step_is_logged_on_our_own_axes_under_one_namespace():
    row = wandb_row(step_record(7))
    assert row["step"] == 7
    assert row["tokens"] == 7 * 2048
    assert row["train/loss"] == step_record(7).loss
    assert all(key.startswith("train/") for key in row if key not in ("step", "tokens"))


def test_a_server_that_cannot_be_reached_delays_no_step_and_bounds_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb_view, "CLOSE_TIMEOUT_SECONDS", 3.0)
    reporter = _open(tmp_path, "online")
    start = time.monotonic()
    for step in range(1, 101):
        reporter.record(step_record(step))
    assert time.monotonic() - start < 2.0
    with caplog.at_level(logging.WARNING):
        start = time.monotonic()
        reporter.close()
        assert time.monotonic() - start < 6.0
    assert "wandb did not finish within 3 s; training is not affected" in caplog.text
    assert len(read_metrics(tmp_path / "metrics.jsonl").records) == 100


def test_a_missing_key_is_said_once_while_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    reporter = _open(tmp_path, "online")
    deadline = time.monotonic() + 60
    step = 0
    with caplog.at_level(logging.WARNING):
        while not caplog.records and time.monotonic() < deadline:
            step += 1
            reporter.record(step_record(step))
            time.sleep(0.05)
        reporter.record(step_record(step + 1))
        reporter.close()
    words = [r.getMessage().split(";")[0] for r in caplog.records]
    assert words == ["wandb could not start in mode online (UsageError) and keeps the run offline"]
    assert len(_rows(_wandb_lines(tmp_path)[0])) == step + 1
    assert "No API key configured" in (tmp_path / "logs" / "wandb.log").read_text()


def test_the_last_records_reach_wandb_when_the_trainer_is_killed(tmp_path: Path):
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
    subprocess.run([sys.executable, "-c", program, tmp_path], env=environment, check=False)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        fragments = _wandb_lines(tmp_path)
        if fragments and any(line["type"] == "exit" for line in fragments[0]):
            break
        time.sleep(0.5)
    assert _rows(_wandb_lines(tmp_path)[0]) == [wandb_row(step_record(step)) for step in range(1, 4)]


def test_disabled_leaves_no_trace_of_wandb(tmp_path: Path):
    with _open(tmp_path, "disabled") as reporter:
        reporter.record(step_record(1))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    imported = "import sys; import training.reporting.reporter; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", imported], check=False).returncode == 0


def test_the_reporter_of_other_ranks_takes_everything_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    with Reporter.silent() as reporter:
        for record in records(blocked=False):
            reporter.record(record)
    assert capsys.readouterr() == ("", "")


def test_numbers_that_are_not_finite_do_not_stop_the_follower(tmp_path: Path):
    with _open(tmp_path, "offline") as reporter:
        reporter.record(replace(step_record(1), grad_norm=math.inf))
        reporter.record(step_record(2))
    rows = _rows(_wandb_lines(tmp_path)[0])
    assert rows[0]["train/grad_norm"] == "Infinity"
    assert rows[1] == wandb_row(step_record(2))


def _evaluations() -> list[EvalRecord]:
    record = eval_record(60, "pretrain", 2.11)
    metrics = record.metrics | {"cissp/acc": 0.625, "bfcl_multi_turn/pass_at_1/base": 0.5}
    between = "eval/pretrain/step-00000040/quick.json"
    return [
        replace(record, step=40, metrics=metrics, report=between, in_between=True),
        replace(record, metrics=metrics, report="eval/pretrain/quick.json"),
        replace(record, step=90, stage="anneal", report="eval/anneal/quick.json"),  # there is no such file
    ]


def test_items_of_a_training_stages_end_are_tables_beside_the_metrics_of_each_benchmark(tmp_path: Path):
    write_example_report(tmp_path / "eval" / "pretrain" / "quick.json")
    write_example_report(tmp_path / "eval" / "pretrain" / "step-00000040" / "quick.json")
    evaluations = _evaluations()
    with _open(tmp_path, "offline") as reporter:
        for record in evaluations:
            reporter.record(record)
    lines = _wandb_lines(tmp_path)[0]
    between, end, without = _rows(lines)
    assert (between, without) == (wandb_row(evaluations[0]), wandb_row(evaluations[2]))
    assert end["eval/quick/cissp/acc"] == 0.625
    assert end["eval/quick/bfcl_multi_turn/pass_at_1/base"] == 0.5
    assert {key for key in end if key.endswith("per_item._type")} == {
        f"eval/quick/{task}/per_item._type" for task in example_report()["tasks"]
    }
    assert "the items of eval/anneal/quick.json are not in wandb" in (tmp_path / "logs" / "wandb.log").read_text()
    (files,) = (tmp_path / "wandb").glob("offline-run-*/files")
    table = json.loads((files / end["eval/quick/regex_match/per_item.path"]).read_text())
    assert table["columns"] == ["after", "id", "acc", "prompt", "answer", "target"]
    assert len(table["data"]) == 203
    assert table["data"][0] == ["pretrain", "markup", 0.0, "Question markup: yes or no?", MARKUP, MARKUP]
    staged = [line["artifact"]["manifest"]["contents"] for line in lines if line["type"] == "artifact"]
    paths = [Path(content["local_path"]) for contents in staged for content in contents]
    assert len(paths) == len(example_report()["tasks"])
    assert all(path.is_relative_to(tmp_path) and path.is_file() for path in paths)  # for `wandb sync`


def test_where_tables_cannot_be_kept_the_numbers_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a file").write_text("where a folder should be")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "a file"))
    write_example_report(tmp_path / "eval" / "pretrain" / "quick.json")
    _, end, _ = _evaluations()
    with _open(tmp_path, "offline") as reporter:
        reporter.record(end)
        reporter.record(step_record(61))
    assert _rows(_wandb_lines(tmp_path)[0]) == [wandb_row(end), wandb_row(step_record(61))]
    assert "the items of pretrain are not in wandb" in (tmp_path / "logs" / "wandb.log").read_text()
