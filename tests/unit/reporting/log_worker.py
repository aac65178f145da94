"""A process whose log lies on storage that misbehaves; writes what it saw as JSON.

python -m tests.unit.reporting.log_worker SCENARIO FOLDER FOUND

FOLDER holds metrics.jsonl on the storage in question, and ballast, which leaves it no room. FOUND is written.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.reporting.example_run import STAGES, step_record, write_frozen_config
from training.errors import StorageError
from training.reporting import log_writer, wandb_view
from training.reporting.log_writer import LogWriter
from training.reporting.metrics import read_metrics
from training.reporting.records import IncidentRecord, StageRecord
from training.reporting.reporter import Reporter

NUM_STEPS = 100
STEP_SECONDS = 0.02
WANDB_CLOSE_SECONDS = 3.0


def longest_hold(
    record: Callable[[Any], None], *, num_steps: int = NUM_STEPS, step_seconds: float = STEP_SECONDS
) -> float:
    """Return the longest time that one of many records held this thread; every tenth is one that matters."""
    longest = 0.0
    for step in range(1, num_steps + 1):
        for new in [step_record(step), *([event(step)] if step % 10 == 0 else [])]:
            begun = time.perf_counter()
            record(new)
            longest = max(longest, time.perf_counter() - begun)
        time.sleep(step_seconds)
    return longest


def event(step: int) -> StageRecord:
    return StageRecord(step=step, stage="pretrain", event="begin", layout="", attempt=0)


def fill(folder: Path) -> None:
    """Leave no byte free."""
    with (folder / "ballast").open("ab", buffering=0) as ballast:
        try:
            while True:
                ballast.write(b"x" * 4096)
        except OSError:
            return


def full_then_free(folder: Path) -> dict[str, Any]:
    """The disk is full for a while; another process of ours makes room."""
    log = LogWriter(folder / "metrics.jsonl")
    fill(folder)
    longest = longest_hold(log.append)
    size_while_full = (folder / "metrics.jsonl").stat().st_size
    (folder / "ballast").unlink()
    deadline = time.monotonic() + 30
    while not any(isinstance(r, IncidentRecord) for r in read_metrics(folder / "metrics.jsonl").records):
        assert time.monotonic() < deadline, "the log did not recover"
        time.sleep(0.05)
    log.close()
    records = read_metrics(folder / "metrics.jsonl").records
    return {
        "longest": longest,
        "size_while_full": size_while_full,
        "steps": [record.step for record in records if record.kind == "step"],
        "events": [record.step for record in records if record.kind == "stage"],
        "incidents": [record.message for record in records if isinstance(record, IncidentRecord)],
    }


def full_for_good(folder: Path) -> dict[str, Any]:
    """The disk stays full until memory would overflow, and at the end."""
    log_writer.LARGEST_BACKLOG_BYTES = 20_000
    log = LogWriter(folder / "metrics.jsonl")
    fill(folder)
    log.append(event(0))  # waits, in vain
    overflow, num_taken = "", 0
    try:
        for num_taken in range(1000):
            log.append(step_record(num_taken))
    except StorageError as error:
        overflow = str(error)
    begun = time.monotonic()
    try:
        log.close()
        at_close = ""
    except StorageError as error:
        at_close = str(error)
    return {"overflow": overflow, "taken": num_taken, "at_close": at_close, "seconds": time.monotonic() - begun}


def slow(folder: Path) -> dict[str, Any]:
    """Every write and sync takes long; somebody else sees to that."""
    log = LogWriter(folder / "metrics.jsonl")
    longest = longest_hold(log.append)
    begun = time.monotonic()
    log.close()
    records = read_metrics(folder / "metrics.jsonl").records
    steps = [record.step for record in records if record.kind == "step"]
    return {"longest": longest, "steps": steps, "close": time.monotonic() - begun}


def whole_reporter(folder: Path) -> dict[str, Any]:
    """Log, console and wandb together, as a run has them."""
    wandb_view.CLOSE_TIMEOUT_SECONDS = WANDB_CLOSE_SECONDS
    mode = os.environ.get("LOG_WORKER_WANDB", "disabled")
    if mode != "disabled":
        write_frozen_config(folder, mode)
    reporter = Reporter.open(
        folder,
        run_id="demo-1",
        stages=STAGES,
        wandb_mode=mode,
        console_every_steps=1,
        attempt=0,
    )
    begun = time.monotonic()
    more = {"num_steps": int(steps), "step_seconds": 0.001} if (steps := os.environ.get("LOG_WORKER_STEPS")) else {}
    longest = longest_hold(reporter.record, **more)
    steps_took = time.monotonic() - begun
    begun = time.monotonic()
    reporter.close()
    steps = [record.step for record in read_metrics(folder / "metrics.jsonl").records if record.kind == "step"]
    return {"longest": longest, "steps": steps, "steps_took": steps_took, "close": time.monotonic() - begun}


SCENARIOS = {
    "full_then_free": full_then_free,
    "full_for_good": full_for_good,
    "slow": slow,
    "whole_reporter": whole_reporter,
}

if __name__ == "__main__":
    found = SCENARIOS[sys.argv[1]](Path(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps(found))
