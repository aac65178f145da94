"""Numbers beside a real run's own: layers, memory, profiles, a forecast. None of them changes a bit of it."""

import gzip
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Reference
from tests.integration.reading import contents, last_checkpoint, numbers_by_step, records
from tests.integration.running import Job, only_run, run_to_end, submit_to_end
from training.errors import ExitCode

MEASURED = [
    "reporting.layers_every_steps=3",
    "reporting.memory_every_steps=5",
    "reporting.profile.steps=[3,4,8,9,10,12]",
    "reporting.profile.ranks=[0,1]",
    "reporting.profile.memory=true",
]
LONG = [
    "stages.pretrain.tokens=3_000_000",  # more steps than are waited for
    "stages.pretrain.schedule.warmup_fraction=0.0",
    "checkpoint.every_steps=100000",
    "run.id=long",
    "resume=auto",
    "reporting.forecast={every_steps: 10, min_steps: 20, sigmas: 6.0, patience_steps: 5}",
]


@pytest.fixture(scope="module")
def measured(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("measured")
    finished = submit_to_end([*reference.overrides, *MEASURED, f"run.root={root}"], folder=root / "output")
    assert finished.exit_code == 0, finished.explain()
    return only_run(root)


def test_a_run_that_is_measured_and_profiled_is_the_same_bit_by_bit(measured: Path, reference: Reference) -> None:
    for path in (measured, reference.directory):
        assert len(numbers_by_step(records(path, "step"))) == 15
    assert numbers_by_step(records(measured, "step")) == numbers_by_step(records(reference.directory, "step"))
    assert contents(last_checkpoint(measured))["slices"] == contents(last_checkpoint(reference.directory))["slices"]
    assert contents(last_checkpoint(measured))["files"] == contents(last_checkpoint(reference.directory))["files"]
    assert [records(reference.directory, kind) for kind in ("layers", "memory", "profile")] == [[], [], []]


def test_layers_are_written_at_their_interval_under_both_layouts(measured: Path) -> None:
    norms = {step["step"]: step["grad_norm"] for step in records(measured, "step")}
    found = records(measured, "layers")
    assert [(record["step"], record["stage"]) for record in found] == [
        *((step, "pretrain") for step in (3, 6, 9)),
        *((step, "anneal") for step in (12, 15)),
    ]
    for record in found:
        assert record["names"] == ["model.embed_tokens", *(f"model.layers.{i}" for i in range(4)), "model.norm"]
        assert math.hypot(*record["grad_norms"]) == pytest.approx(norms[record["step"]], rel=1e-6)
        assert all(norm > 0 for kind in ("weight_norms", "update_norms") for norm in record[kind])


def test_memory_is_that_of_the_rank_that_has_most(measured: Path) -> None:
    found = records(measured, "memory")
    assert [record["step"] for record in found] == [5, 10, 15]
    for record in found:
        assert 10**8 < record["host_bytes"] < 10**11
        assert record["host_rank"] in (0, 1)
        assert record["device_bytes"] is record["device_rank"] is None
        assert all(record["held_bytes"][kind] > 0 for kind in ("weights", "gradients", "optimizer"))


def test_consecutive_steps_are_one_trace_of_each_chosen_rank_and_end_with_their_training_stage(measured: Path) -> None:
    found = records(measured, "profile")
    assert [(record["first_step"], record["step"], record["stage"]) for record in found] == [
        (3, 4, "pretrain"),
        (8, 9, "pretrain"),  # the training stage ends with step 9
        (10, 10, "anneal"),
        (12, 12, "anneal"),
    ]
    assert sorted(path.name for path in (measured / "profiles").iterdir()) == sorted(
        f"step-{step:08d}-rank-{rank:05d}.json.gz" for step in (4, 9, 10, 12) for rank in (0, 1)
    )
    for record in found:
        for rank in (0, 1):
            events = trace(measured / record["trace"].replace("rank-00000", f"rank-{rank:05d}"))
            assert {"aten::mm", "[memory]"} <= {event.get("name") for event in events}
        assert record["rank"] == 0
        assert record["memory"] is None, "snapshots are of CUDA devices"
        seconds = [operator["seconds"] for operator in record["operators"]]
        assert seconds == sorted(seconds, reverse=True)
        assert "aten::mm" in {operator["name"] for operator in record["operators"]}


def trace(path: Path) -> list[dict[str, Any]]:
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


@pytest.fixture(scope="module")
def long_run(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is profiled on demand, stopped, and goes on with logits thirty times too large."""
    root = tmp_path_factory.mktemp("long")
    run, overrides = root / "long", [*reference.overrides, *LONG, f"run.root={root}"]
    with Job([sys.executable, "-m", "launch.submit", *overrides], folder=root / "output") as job:
        job.wait_until(lambda: len(records(run, "step")) >= 40)
        ask = [sys.executable, "-m", "launch.profile", str(run), "--steps", "2", "--ranks", "0,1"]
        asked = run_to_end(ask, folder=root / "output")
        assert asked.exit_code == 0, asked.explain()
        job.wait_until(lambda: len(list((run / "profiles").glob("step-*"))) == 2 and bool(records(run, "profile")))
        stop(job)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTARKY_POISON", "logits=30:*:*")
        with Job([sys.executable, "-m", "launch.submit", *overrides], folder=root / "output") as job:
            job.wait_until(lambda: any(record["what"] == "loss_off_forecast" for record in records(run, "incident")))
            stop(job)
    return run


def stop(job: Job) -> None:
    job.process_named("launch.submit").send_signal(signal.SIGTERM)
    finished = job.wait()
    assert finished.exit_code == ExitCode.STOPPED, finished.explain()


@pytest.mark.timeout(300)
def test_a_running_run_is_profiled_on_demand(long_run: Path) -> None:
    [record] = records(long_run, "profile")
    assert record["step"] == record["first_step"] + 1
    assert record["first_step"] > 40
    names = [f"step-{record['step']:08d}-rank-{rank:05d}.json.gz" for rank in (0, 1)]
    assert sorted(path.name for path in (long_run / "profiles").iterdir()) == names, "both ranks took the same steps"
    assert "aten::mm" in {event.get("name") for event in trace(long_run / "profiles" / names[1])}


@pytest.mark.timeout(300)
def test_a_loss_that_leaves_its_course_after_a_restart_is_an_incident(long_run: Path) -> None:
    [told] = [record for record in records(long_run, "incident") if record["what"] == "loss_off_forecast"]
    first = min(step["step"] for step in records(long_run, "step") if step["attempt"] == 1)
    assert told["attempt"] == 1
    assert told["step"] == first + 4, "it is seeded from what the first start wrote"
    assert told["message"].startswith("the loss of the last 5 steps, ")
