"""experiment=workflow_smollm2 in small: real weights, real trajectories, both training stages, both measures."""

import sys
from pathlib import Path

import pytest

from tests.integration.reading import records
from tests.integration.running import only_run, run_to_end, submit_to_end

_WEIGHTS = Path(".weights/smollm2_135m")


@pytest.mark.skipif(not (_WEIGHTS / "model.safetensors").exists(), reason="no real weights: make weights")
def test_smollm2_learns_calls_and_is_measured_by_them(tmp_path: Path) -> None:
    made = run_to_end(
        [sys.executable, "-m", "eval.workflows.trajectories", "--out", str(tmp_path / "trajectories"), "--compact"],
        folder=tmp_path,
    )
    assert made.exit_code == 0, made.explain()
    files = {"calls": "conversations", "held_out_calls": "held_out_conversations", "call_pairs": "preferences"}
    finished = submit_to_end(
        [
            "experiment=workflow_smollm2",
            *(f"data.sources.{name}.path={tmp_path}/trajectories/single/{file}.jsonl" for name, file in files.items()),
            "data.sources.call_pairs.max_documents=60",
            f"run.root={tmp_path / 'runs'}",
            "stages.sft.tokens=10240",  # 4 steps
            "stages.sft.schedule.warmup_fraction=0.0",
            "stages.preference.tokens=4096",  # 1 step
            "stages.sft.gate=null",
            "stages.preference.gate=null",
            "eval.suites.calls.held_out_conversations=4",
            "eval.suites.calls.benchmarks.bfcl_simple.items=2",
            "~eval.suites.calls.benchmarks.bfcl_multiple",
        ],
        folder=tmp_path,
    )
    assert finished.exit_code == 0, finished.explain()
    run = only_run(tmp_path / "runs")
    start, sft, preference = (record["metrics"] for record in records(run, "eval"))
    assert sft["assistant_nats_per_token"] < 0.9 * start["assistant_nats_per_token"], "four steps are felt"
    assert all(0.0 <= metrics["bfcl_simple/parsed"] <= 1.0 for metrics in (start, sft, preference))
    [step] = [record for record in records(run, "step") if record["stage"] == "preference"]
    assert step["loss"] == pytest.approx(0.6931, abs=0.02)
    assert step["preference"]["margin"] == pytest.approx(0.0, abs=0.05)
