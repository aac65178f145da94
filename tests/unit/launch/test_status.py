"""One screen about a run: alive, silent, dead, blocked or done."""

import json
import os
import time
from pathlib import Path

import pytest

from launch import status
from tests.unit.reporting.example_run import step_record
from training.config.load import compose
from training.config.run_directory import create
from training.errors import ConfigError, ExitCode
from training.lease import Lease
from training.reporting.metrics import FILE_NAME
from training.reporting.records import (
    CheckpointRecord,
    IncidentRecord,
    LayersRecord,
    Record,
    StartRecord,
    TimeRecord,
    to_json_object,
)

NUM_STEPS = 15  # of experiment=smoke


def start(launched_seconds: float) -> StartRecord:
    return StartRecord(
        step=0,
        stage="pretrain",
        attempt=0,
        launched_seconds=launched_seconds,
        world_size=16,
        hosts={f"node-{number}": f"{8 * number}-{8 * number + 7}" for number in range(5)},
        peak_flops_per_second=1e12,
        peak_source="a data sheet",
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    words = ["experiment=smoke", f"run.root={tmp_path}", "run.id=a-run"]
    return create(compose(words), words)


def write(run: Path, records: list[Record], *, ago_seconds: float = 1.0) -> None:
    now = time.time()
    lines = [json.dumps(to_json_object(record, time_seconds=now - ago_seconds)) for record in records]
    (run / FILE_NAME).write_text("\n".join(lines) + "\n")


def write_ledger(run: Path, state: str, *statuses: str) -> None:
    stages = [{"name": name, "status": told} for name, told in zip(("pretrain", "anneal"), statuses, strict=False)]
    (run / "stages.json").write_text(json.dumps({"state": state, "stages": stages}))


def text(run: Path) -> str:
    return "\n".join(status.status(run))


def some_records(launched_seconds: float) -> list[Record]:
    return [
        start(launched_seconds),
        TimeRecord(step=0, stage="pretrain", attempt=0, spent={"start_up": 20.0}),
        *(step_record(number) for number in range(1, 7)),
        LayersRecord(
            step=4,
            stage="pretrain",
            attempt=0,
            names=["model.embed_tokens", "model.layers.0"],
            weight_norms=[1.0, 1.0],
            grad_norms=[0.6, 0.8],
            update_norms=[1e-3, 1e-9],
        ),
        CheckpointRecord(
            step=4, stage="pretrain", directory="checkpoints/step-00000004", num_bytes=1, seconds=0.1, attempt=0
        ),
        IncidentRecord(step=5, stage="pretrain", what="loss_spike", message="one loss was high", attempt=0),
    ]


def test_a_run_that_nobody_has_started(run: Path) -> None:
    assert text(run).splitlines()[0] == "run a-run: NOT STARTED"
    assert f"no step of {NUM_STEPS} was done yet" in text(run)


def test_a_running_run(run: Path) -> None:
    write(run, some_records(time.time() - 60))
    write_ledger(run, "running", "training", "pending")
    lease = Lease.take(run)
    said = text(run)
    lease.release()
    for expected in (
        "run a-run: RUNNING, attempt 1, 16 devices on node-0, node-1, node-2 and 2 more",
        f"step 6 of {NUM_STEPS} (40%), training stage pretrain (1 of 2), its step 6 of 9, ETA 6.3s",
        "a step takes 0.7s",
        "training stages: pretrain training, anneal pending",
        "newest checkpoint: checkpoints/step-00000004 (step 4)",
        "layers, last 1 records up to step 4: update-to-weight ratio from 1.0e-09 (model.layers.0) to 1.0e-03",
        "-> hardly learning: model.layers.0",
        "incidents: 1 loss_spike",
        "last incident: step 5, loss_spike: one loss was high",
        "goodput 7.12% of 59s; lost: unaccounted",
    ):
        assert expected in said
    assert "SILENT" not in said
    assert "-> python" not in said


def test_a_run_that_has_written_nothing_for_long_is_said_to_be_silent(run: Path) -> None:
    write(run, some_records(time.time() - 4000), ago_seconds=3600.0)
    write_ledger(run, "running", "training", "pending")
    lease = Lease.take(run)
    assert "  SILENT: last record 1h00m ago, a step takes 0.7s" in text(run)
    lease.release()


def test_a_run_whose_process_has_gone_is_dead_and_the_way_on_is_said(run: Path) -> None:
    write(run, some_records(time.time() - 60))
    write_ledger(run, "running", "training", "pending")
    child = os.fork()
    if not child:  # a holder that dies without giving the lease back
        Lease.take(run)
        os._exit(0)
    os.waitpid(child, 0)
    lines = text(run).splitlines()
    assert lines[0].startswith("run a-run: DEAD")
    assert lines[-1].startswith("  -> python -m launch.submit experiment=smoke")
    assert lines[-1].endswith("run.id=a-run resume=auto")


def test_a_blocked_run_asks_for_a_decision(run: Path) -> None:
    write(run, some_records(time.time() - 60))
    write_ledger(run, "blocked", "blocked", "pending")
    assert "run a-run: BLOCKED" in text(run)
    assert f"-> python -m launch.gate {run} says what the gate found" in text(run)


def test_what_is_older_than_the_tail_is_found_all_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_TAIL_BYTES", 1000)
    monkeypatch.setattr(status, "_LARGEST_WHOLE_BYTES", 1000)
    write(run, [*some_records(time.time() - 60), *(step_record(number) for number in range(7, 16))])
    write_ledger(run, "done", "promoted", "promoted")
    said = text(run)
    assert "DONE, attempt 1, 16 devices" in said
    assert "last incident: step 5, loss_spike" in said
    assert f"where the time went: python -m training.reporting {run}" in said


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        text(tmp_path)
    assert status.main([str(tmp_path)]) == ExitCode.BAD_CONFIG
    assert str(tmp_path) in capsys.readouterr().err
