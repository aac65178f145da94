"""A run starts again by itself until it is done, stopped, or a person has to look."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from launch.again import run_with_restarts
from launch.supervise import Outcome
from training.config.load import compose
from training.errors import ExitCode
from training.reporting.starts import read_starts


def run(
    directory: Path, ends: Sequence[tuple[ExitCode, int]], *, max_restarts: int, interrupted: bool = False
) -> tuple[Outcome, list[bool], list[float]]:
    """Run starts that end so, each after recording a step."""
    config = compose(["experiment=smoke", f"cluster.max_restarts={max_restarts}"])
    directory.mkdir(exist_ok=True)
    asked: list[bool] = []
    pauses: list[float] = []

    def start(again: bool) -> Outcome:
        code, step = ends[len(asked)]
        asked.append(again)
        with (directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "step", "step": step}) + "\n")
        return Outcome(exit_code=code, interrupted=interrupted)

    return run_with_restarts(start, directory, config, pause=pauses.append), asked, pauses


def test_it_goes_on_from_what_is_there_until_the_run_is_done(tmp_path: Path) -> None:
    ends = [(ExitCode.PEER_LOST, 3), (ExitCode.HANG, 5), (ExitCode.DONE, 9)]
    outcome, asked, pauses = run(tmp_path, ends, max_restarts=5)
    assert outcome.exit_code is ExitCode.DONE
    assert asked == [False, True, True]
    assert pauses == [1.0, 2.0]
    assert [record["exit_code"] for record in read_starts(tmp_path) if record["event"] == "end"] == [4, 11, 0]


@pytest.mark.parametrize(
    ("ends", "max_restarts", "code", "num_starts"),
    [
        ([(ExitCode.PEER_LOST, 3)], 0, ExitCode.PEER_LOST, 1),
        ([(ExitCode.GATE_BLOCKED, 3)], 5, ExitCode.GATE_BLOCKED, 1),
        ([(ExitCode.HANG, step) for step in (1, 2, 3)], 2, ExitCode.HANG, 3),
        ([(ExitCode.FAILED, 7)] * 3, 9, ExitCode.NO_PROGRESS, 3),
    ],
)
def test_it_stops_where_another_start_would_not_help(
    tmp_path: Path,
    ends: list[tuple[ExitCode, int]],
    max_restarts: int,
    code: ExitCode,
    num_starts: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcome, asked, _ = run(tmp_path, ends, max_restarts=max_restarts)
    assert outcome.exit_code is code
    assert len(asked) == num_starts
    assert bool(capsys.readouterr().err) == (max_restarts > 0)


def test_who_asked_it_to_stop_is_not_overruled(tmp_path: Path) -> None:
    outcome, asked, _ = run(tmp_path, [(ExitCode.STOPPED, 3)], max_restarts=5, interrupted=True)
    assert outcome == replace(outcome, exit_code=ExitCode.STOPPED, interrupted=True)
    assert asked == [False]
