"""The list of starts survives torn lines, and a start without an end counts as lost."""

import json
from pathlib import Path

from launch import attempts
from launch.requeue import Attempt
from training.errors import ExitCode
from training.reporting.starts import read_starts


def start(directory: Path, restarts: int, job: str = "7") -> None:
    attempts.write_start(directory, job=job, restarts=restarts, nodes=["node1"], allocated=["node1", "node2"])


def end(directory: Path, restarts: int, code: ExitCode, job: str = "7") -> None:
    attempts.write_end(directory, job=job, restarts=restarts, exit_code=code, blamed=[], decision="requeue: why")


def step(directory: Path, number: int) -> None:
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "step", "step": number}) + "\n")
        file.write(json.dumps({"kind": "incident", "step": 99}) + "\n")


def test_the_history_of_a_job(tmp_path: Path) -> None:
    assert attempts.history(tmp_path, job="7") == []
    start(tmp_path, 0)
    step(tmp_path, 4)
    end(tmp_path, 0, ExitCode.HANG)
    start(tmp_path, 1)
    step(tmp_path, 6)
    start(tmp_path, 2)  # the start before was lost with its node
    start(tmp_path, 0, job="8")
    end(tmp_path, 0, ExitCode.DATA, job="8")
    assert attempts.history(tmp_path, job="7") == [
        Attempt(exit_code=ExitCode.HANG, step=4),
        Attempt(exit_code=None, step=6),
    ]


def test_a_torn_line_is_no_record_and_does_not_run_into_the_next_one(tmp_path: Path) -> None:
    start(tmp_path, 0)
    with (tmp_path / attempts.FILE_NAME).open("a") as file:
        file.write('{"event": "end", "job": "7"')
    end(tmp_path, 0, ExitCode.STOPPED)
    assert [record["event"] for record in read_starts(tmp_path)] == ["start", "end"]


def test_the_last_step_is_found_behind_a_torn_line_and_long_records(tmp_path: Path) -> None:
    assert attempts.last_step(tmp_path) == 0
    step(tmp_path, 12)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "eval", "samples": "x" * 100_000}) + "\n" + '{"kind": "step", "st')
    assert attempts.last_step(tmp_path) == 12


def test_what_others_wrote_there_is_no_error(tmp_path: Path) -> None:
    (tmp_path / attempts.FILE_NAME).write_text('[]\n3\n{"event": "end", "job": "7", "exit_code": 99, "step": "x"}\n')
    assert attempts.history(tmp_path, job="7") == [Attempt(exit_code=None, step=0)]
