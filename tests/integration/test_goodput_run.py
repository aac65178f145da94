"""The goodput ledger of a real run with a dead rank, a frozen rank and a loss spike, beside a clock of our own."""

import os
import signal
import time
from pathlib import Path

import pytest

from launch.status import status
from tests.integration.reading import records
from tests.integration.running import SMOKE, kill, only_run, run_directories, submit
from training.fault_tolerance.poisoned import VARIABLE
from training.reporting.formatting import duration, percent
from training.reporting.goodput import Spent, goodput
from training.reporting.metrics import FILE_NAME, read_metrics
from training.reporting.records import StepRecord
from training.reporting.starts import end_times

LIMIT_SECONDS = 4.0
SAMPLES = 8
SPIKE_AT = 25


@pytest.mark.timeout(300)
def test_three_faults_are_in_the_ledger_and_it_adds_up_to_the_wall_time(
    tmp_path: Path, prepared_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"logits=1e4:*:{SAMPLES * (SPIKE_AT - 1) + 3}")
    root = tmp_path / "runs"
    overrides = [
        *SMOKE,
        f"run.root={root}",
        f"data.prepared_root={prepared_root}",
        "stages.pretrain.tokens=20480",  # 40 steps
        "eval.at_start=false",
        "cluster.max_restarts=3",
        f"fault_tolerance.hang.step_seconds={LIMIT_SECONDS}",
        "fault_tolerance.recovery.on_loss_spike=rollback",
        "fault_tolerance.recovery.window_steps=8",
        "fault_tolerance.recovery.min_steps=5",
        "checkpoint.keep_last=3",
    ]

    def num_steps() -> int:
        return sum(len(records(run, "step")) for run in run_directories(root))

    with submit(overrides, folder=tmp_path) as job:
        job.wait_until(lambda: job.has_process_named("deepspeed.launcher.launch"))
        began = time.time()
        job.wait_until(lambda: num_steps() >= 6)
        kill(job.ranks()[1])
        seen = num_steps()
        job.wait_until(lambda: num_steps() >= seen + 6)
        os.kill(job.ranks()[0].pid, signal.SIGSTOP)
        finished = job.wait()
        ended = time.time()
    assert finished.exit_code == 0, finished.explain()
    run = only_run(root)
    metrics = read_metrics(run / FILE_NAME)
    found = goodput(metrics, end_times(run))
    assert found is not None
    assert found.wall_seconds == pytest.approx(ended - began, rel=0.01)
    assert sum(found.spent.values()) == pytest.approx(found.wall_seconds, abs=1e-6)
    assert abs(found.spent[Spent.unaccounted]) < 0.01 * found.wall_seconds
    assert [attempt.attempt for attempt in found.attempts] == [0, 1, 2]
    assert {incident["what"] for incident in records(run, "incident")} >= {"hang", "rollback", "restart"}
    # What each fault cost: steps that were done again, a hang that was noticed in time, pauses of 1 and 2 s.
    assert found.spent[Spent.undone] > 0
    assert found.attempts[1].spent[Spent.ending] > LIMIT_SECONDS / 2
    assert found.attempts[0].spent[Spent.down] == pytest.approx(1.0, abs=0.5)
    assert found.spent[Spent.restart] > 0
    done = [record for record in metrics.records if isinstance(record, StepRecord)]
    assert found.spent[Spent.compute] < sum(step.seconds for step in done)
    said = "\n".join(status(run))
    assert f"run {run.name}: DONE, attempt 3, 2 devices on" in said
    assert f"goodput {percent(found.share)} of {duration(found.wall_seconds)}; lost: " in said
    print({what: round(seconds, 2) for what, seconds in found.spent.items()}, found.wall_seconds)
