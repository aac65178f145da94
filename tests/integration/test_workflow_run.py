"""Real weights learn to call functions: from conversations, then from pairs, evaluated before, between and after.

A few steps of `experiment=workflow_smollm2`; what the whole of it comes to stands in docs/evaluation_tasks.md.
"""

import json
from pathlib import Path

import pytest
import yaml

from eval.workflows.trajectories import single_turn_trajectories, write
from tests.integration.running import submit_to_end
from training.reporting.metrics import read_metrics
from training.reporting.records import EvalRecord, GateRecord, StepRecord

SUITE = "eval.suites.calls"
LEFT_OUT = [
    f"~stages.{name}.gate.conditions.{condition}" for name in ("sft", "preference") for condition in ("calls", "right")
]
FEW = [
    "reporting.wandb.mode=disabled",
    *("stages.sft.tokens=5_120", "stages.preference.tokens=4_096", "stages.sft.gate.conditions.loss.at_most=0.8"),
    *LEFT_OUT,
    *(f"{SUITE}.held_out_conversations=10", f"{SUITE}.benchmarks.bfcl_simple.items=2"),
    *(f"{SUITE}.benchmarks.bfcl_simple.max_new_tokens=4", f"~{SUITE}.benchmarks.bfcl_multiple"),
]
"""Two answers of four tokens are no calls: of the gates, the conditions on the loss are left."""


@pytest.mark.usefixtures("smollm2")
def test_smollm2_learns_from_conversations_and_then_from_pairs(prepared_benchmarks: Path, tmp_path: Path) -> None:
    made = single_turn_trajectories(prepared_benchmarks, fraction=0.2, compact=True)
    write(tmp_path, {"single": made}, fraction=0.2)
    root = tmp_path / "prepared"
    root.mkdir()
    (root / "benchmarks").symlink_to(prepared_benchmarks / "benchmarks")
    files = {"calls": "conversations", "held_out_calls": "held_out_conversations", "call_pairs": "preferences"}
    paths = [f"data.sources.{name}.path={tmp_path}/single/{file}.jsonl" for name, file in files.items()]
    places = [*paths, f"data.prepared_root={root}", f"run.root={tmp_path}/runs", "run.id=run"]
    finished = submit_to_end(["experiment=workflow_smollm2", *places, *FEW], folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    run = tmp_path / "runs" / "run"
    records = read_metrics(run / "metrics.jsonl").records
    evals = [record for record in records if isinstance(record, EvalRecord)]
    assert [record.stage for record in evals] == ["start", "sft", "preference"]
    assert [record.bits_per_byte for record in evals] == [None] * 3
    gates = [record for record in records if isinstance(record, GateRecord)]
    assert [(gate.stage, gate.decision) for gate in gates] == [("sft", "promote"), ("preference", "promote")]
    losses = [record.metrics["assistant_nats_per_token"] for record in evals]
    assert losses[1] < 0.8 * losses[0]
    assert {"bfcl_simple/acc", "bfcl_simple/parsed"} <= set(evals[2].metrics)
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert [step.preference is not None for step in steps] == [step.stage == "preference" for step in steps]
    report = json.loads((run / "eval" / "sft" / "calls.json").read_text())
    assert {item["id"] for item in report["tasks"]["bfcl_simple"]["items"]} <= set(made.held_out_ids)
    assert yaml.safe_load((run / "config.yaml").read_text())["init_from"].endswith("smollm2_135m")
