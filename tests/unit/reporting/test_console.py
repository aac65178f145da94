import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from tests.unit.reporting.example_run import STAGES, records, step_record
from training.reporting.console import ConsoleView
from training.reporting.formatting import count, duration, num_bytes, percent
from training.reporting.records import EventRecord, GateRecord, IncidentRecord, Record


def _show(shown: list[Record], *, terminal: bool, attempt: int = 0) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, soft_wrap=True)
    view = ConsoleView(run_id="demo-1", stages=STAGES, every_steps=10, attempt=attempt, console=console)
    for record in shown:
        view.append(record)
    view.close()
    return stream.getvalue()


def test_a_log_file_gets_one_plain_line_every_few_steps():
    lines = _show([step_record(step) for step in range(1, 61)], terminal=False).splitlines()
    assert lines[0] == "run demo-1"
    assert [line.split("step ")[1].split("/")[0] for line in lines[1:]] == ["1", "10", "20", "30", "40", "50", "60"]
    assert "\x1b" not in "".join(lines)
    assert lines[2].startswith("[1/3 pretrain] step 10/60  loss ")
    assert "3.03k tok/s  MFU 31%" in lines[2]
    assert lines[2].endswith("ETA 35s, run 1m10s")


def test_steps_are_counted_within_their_training_stage():
    line = _show([step_record(70, stage="anneal")], terminal=False).splitlines()[1]
    assert line.startswith("[2/3 anneal] step 10/30")


def test_events_are_always_shown_with_their_reasons():
    text = _show(records(blocked=True), terminal=False, attempt=1)
    for expected in (
        "run demo-1, attempt 2",
        "[start] eval quick: 3.0200 bits per byte  choice_accuracy 0.25  (4.2s)",
        "[anneal] gate: BLOCKED\n    bits per byte rose by 0.20 over pretrain's 2.11, allowed is 0.00",
        "[pretrain] checkpoint checkpoints/step-00000040: 47.4 MB in 0.3s, training stood still for 12 ms",
        "[pretrain] INCIDENT restart at step 40: continued from step 40",
        "[pretrain] begin: pipeline 2",
        "run blocked at step 90",
    ):
        assert expected in text


def test_a_terminal_gets_a_live_line_instead_of_step_lines():
    text = _show([step_record(step) for step in range(1, 31)], terminal=True)
    assert "1/3 pretrain" in text
    assert "30/60" in text
    assert "[1/3 pretrain] step" not in text


def test_training_goes_on_when_the_reader_of_its_output_goes_away():
    program = (
        "from tests.unit.reporting.example_run import STAGES, step_record\n"
        "from training.reporting.console import ConsoleView\n"
        "view = ConsoleView(run_id='x', stages=STAGES, every_steps=1, attempt=0)\n"
        "input()\n"
        "for step in range(1, 50): view.append(step_record(step))\n"
        "import sys; sys.stderr.write('alive')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read().startswith(b"alive")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(0), "0"),
        (count(950), "950"),
        (count(999.7), "1.00k"),
        (count(12345), "12.3k"),
        (count(2.1e12), "2.10T"),
        (num_bytes(512), "512 B"),
        (num_bytes(98e6), "98.0 MB"),
        (duration(0.42), "0.4s"),
        (duration(59.7), "1m00s"),
        (duration(192), "3m12s"),
        (duration(3599.7), "1h00m"),
        (duration(3840), "1h04m"),
        (duration(183_600), "2d03h"),
        (percent(0.412), "41.2%"),
    ],
)
def test_numbers_are_rounded_for_people(shown: str, expected: str):
    assert shown == expected


def test_incidents_that_repeat_are_told_three_times_then_counted():
    incidents = [
        IncidentRecord(step=n, stage="pretrain", what="non_finite", message=f"norm {n}", attempt=0)
        for n in range(1, 13)
    ]
    other = IncidentRecord(step=13, stage="pretrain", what="hang", message="rank 1", attempt=0)
    lines = _show([*incidents, other], terminal=False).splitlines()[1:]
    assert [line.split("INCIDENT ")[1] for line in lines] == [
        "non_finite at step 1: norm 1",
        "non_finite at step 2: norm 2",
        "non_finite at step 3: norm 3",
        "non_finite for the 10th time",
        "hang at step 13: rank 1",
    ]


def test_a_terminal_has_a_bar_for_the_training_stage_and_one_for_the_run_with_what_is_left_of_each():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    view = ConsoleView(run_id="demo-1", stages=STAGES, every_steps=10, attempt=0, console=console)
    for step in range(61, 71):
        view.append(step_record(step, stage="anneal"))
    view.close()
    with console.capture() as capture:
        console.print(view.display)
    stage, run, numbers = capture.get().splitlines()
    assert stage.split()[0:2] == ["2/3", "anneal"]
    assert stage.split()[-3:] == ["10/30", "ETA", "14s"]
    assert run.split()[0] == "run"
    assert run.split()[-3:] == ["70/110", "ETA", "28s"]
    assert numbers.startswith("loss ")


def test_what_is_wrong_stands_out_on_a_terminal():
    def styled(record: EventRecord) -> str:
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=True, width=200, color_system="standard", legacy_windows=False)
        view = ConsoleView(run_id="demo-1", stages=STAGES, every_steps=10, attempt=0, console=console)
        view.append(record)
        view.close()
        return next(line for line in stream.getvalue().splitlines() if "[pretrain]" in line)

    incident = IncidentRecord(step=1, stage="pretrain", what="hang", message="rank 1", attempt=0)
    assert "\x1b[1;31m[pretrain] INCIDENT" in styled(incident)
    gate = GateRecord(step=1, stage="pretrain", decision="promote", reasons=[], attempt=0)
    assert "\x1b[32m[pretrain] gate: PROMOTED" in styled(gate)
