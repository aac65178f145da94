"""What an undisturbed run leaves behind, and that its numbers mean what they say."""

import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.plan import main as plan
from tests.integration.conftest import Reference
from tests.integration.reading import last_checkpoint, ledger, records
from tests.integration.running import run_to_end
from training.checkpoint.catalog import verify
from training.reporting.summary import read_run

NUM_STEPS, PRETRAIN_STEPS = 15, 9


def test_the_run_is_done_and_every_gate_promoted(reference: Reference) -> None:
    stages = ledger(reference.directory)
    assert stages["state"] == "done"
    assert {entry["name"]: entry["status"] for entry in stages["stages"]} == {
        "pretrain": "promoted",
        "anneal": "promoted",
    }
    assert [record["decision"] for record in records(reference.directory, "gate")] == ["promote", "promote"]


def test_every_step_is_recorded_once(reference: Reference) -> None:
    steps = records(reference.directory, "step")
    assert [step["step"] for step in steps] == list(range(1, NUM_STEPS + 1))
    assert [step["stage"] for step in steps] == ["pretrain"] * PRETRAIN_STEPS + ["anneal"] * (
        NUM_STEPS - PRETRAIN_STEPS
    )
    assert len({step["batch_id"] for step in steps}) == NUM_STEPS
    assert {step["attempt"] for step in steps} == {0}
    assert not any(step["skipped"] for step in steps)
    assert all(0 < step["mfu"] < 1.5 and step["tokens_per_second"] > 0 for step in steps)


def test_checkpoints_that_are_kept_are_whole_and_hold_one_file_per_rank(reference: Reference) -> None:
    checkpoints = reference.directory / "checkpoints"
    # Each training stage's last one, and of the others the newest two.
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000009", "step-00000012", "step-00000015"]
    for path in checkpoints.iterdir():
        assert {file.name for file in path.iterdir()} == {
            "manifest.json",
            "rank-00000.safetensors",
            "rank-00001.safetensors",
        }
        assert verify(path).progress.step == int(path.name.removeprefix("step-"))


def test_the_run_directory_holds_what_the_documentation_promises(reference: Reference) -> None:
    directory = reference.directory
    for name in ("deepspeed/pretrain.json", "deepspeed/anneal.json", "environment.json"):
        assert json.loads((directory / name).read_text()), name
    for name in ("start", "pretrain", "anneal"):
        assert json.loads((directory / "eval" / name / "quick.json").read_text())["metrics"]["bits_per_byte"] > 0
    assert yaml.safe_load((directory / "config.yaml").read_text())["run"]["id"] == directory.name
    assert "experiment=smoke" in yaml.safe_load((directory / "overrides.yaml").read_text())
    assert {path.name for path in (directory / "logs").glob("rank-*")} == {"rank-00000.log", "rank-00001.log"}
    report = (directory / "report.html").read_text()
    assert "damaged and were left out" not in report
    assert "pretrain" in report
    assert "anneal" in report
    assert len(list((directory / "wandb").glob("offline-run-*"))) == 1
    assert not list(directory.rglob("*.tmp"))


def test_the_plan_stands_beside_what_was_measured_and_learns_from_it(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = read_run(reference.directory)
    for stage in summary.stages:
        assert stage.no_comparison == ""
        assert [comparison.what for comparison in stage.planned] == ["step", "tokens per second", "MFU"]
        assert all(comparison.measured > 0 and comparison.planned > 0 for comparison in stage.planned)
    assert "Plan versus measured" in (reference.directory / "report.html").read_text()
    file = tmp_path / "calibration.json"
    assert plan(["--calibrate", str(file), str(reference.directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split()[-1] for line in lines[1:3]] == ["pretrain", "anneal"]
    learned = json.loads(file.read_text())["calibration"]["points"].values()
    for measured, before, after in learned:
        assert abs(math.log(after / measured)) <= abs(math.log(before / measured)) + 0.05
    assert plan(["experiment=smoke", f"cluster.calibration={file}"]) == 0


def test_the_loss_goes_on_over_the_change_of_layout(reference: Reference) -> None:
    losses = [step["loss"] for step in records(reference.directory, "step")]
    jumps = [abs(after - before) for before, after in pairwise(losses)]
    boundary = PRETRAIN_STEPS - 1
    assert jumps[boundary] <= max(jumps[:boundary] + jumps[boundary + 1 :])
    assert losses[-1] < losses[0] - 0.3


def test_training_makes_held_out_text_cheaper(reference: Reference) -> None:
    bits = [record["bits_per_byte"] for record in records(reference.directory, "eval")]
    assert len(bits) == 3
    assert bits[0] > bits[1] > bits[2]


@pytest.fixture(scope="module")
def evaluations(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last checkpoint evaluated by two processes under two layouts, and by one process alone."""
    folder = tmp_path_factory.mktemp("evaluations")
    found: dict[str, Any] = {}
    for num_processes, layouts in ((2, ["zero3", "pipeline", "pipeline_zero3"]), (1, ["single"])):
        output = folder / f"{num_processes}.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--standalone"]
        worker = ["-m", "tests.integration.evaluation_worker", str(reference.directory), str(output), *layouts]
        finished = run_to_end([*torchrun, *worker], folder=folder)
        assert finished.exit_code == 0, finished.explain()
        found |= json.loads(output.read_text())
    return found


@pytest.mark.parametrize("layout", ["zero3", "pipeline", "pipeline_zero3"])
def test_evaluation_finds_the_same_under_every_layout_document_by_document(
    evaluations: dict[str, Any], layout: str
) -> None:
    alone, spread = evaluations["single"]["tasks"], evaluations[layout]["tasks"]
    assert alone.keys() == spread.keys() >= {"held_out", "samples"}
    for task in alone:
        assert len(alone[task]["items"]) == len(spread[task]["items"]) > 0
        for one, other in zip(alone[task]["items"], spread[task]["items"], strict=True):
            assert one == approximately(other), task


def test_the_run_reported_what_its_last_checkpoint_scores(reference: Reference, evaluations: dict[str, Any]) -> None:
    reported = json.loads((reference.directory / "eval/anneal/quick.json").read_text())
    assert last_checkpoint(reference.directory).name == "step-00000015"
    assert reported["tasks"] == evaluations["pipeline_zero3"]["tasks"]  # same layout: bit by bit


def approximately(value: Any) -> Any:
    """The same value, with room of 1e-6 for every float in it."""
    if isinstance(value, dict):
        return {key: approximately(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [approximately(inner) for inner in value]
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
