"""Evaluations of a run: in the midst of training, with benchmarks, failing, rolling back, and by hand afterwards."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.evidence import read_items
from tests.integration.conftest import Reference
from tests.integration.reading import contents, last_checkpoint, ledger, numbers_by_step, records, stage_status
from tests.integration.running import Finished, only_run, run_to_end, submit_to_end
from tests.unit.eval.sandbox.available import why_not
from training.errors import ExitCode

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

BENCHMARKS = (
    "{fcc_amateur_extra: {items: 4}, bits_per_byte_prose: {items: 1}, human_eval: {items: 2, max_new_tokens: 8}}"
)
ROLL_BACK = ["stages.anneal.gate.conditions.quality.at_most=0.1", "stages.anneal.gate.when_missed=roll_back"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def overrides(reference: Reference, prepared_root: Path, prepared_benchmarks: Path, root: Path) -> list[str]:
    """The reference run, measured more often and with benchmarks."""
    if not (prepared_root / "benchmarks").exists():
        shutil.copytree(prepared_benchmarks / "benchmarks", prepared_root / "benchmarks")
    return [
        *reference.overrides,
        f"run.root={root}",
        f"+eval.suites.quick.benchmarks={BENCHMARKS}",
        "eval.suites.quick.max_length=96",
        "+stages.pretrain.eval_every_steps=4",
        "checkpoint.keep_last=9",
    ]


@pytest.fixture(scope="module")
def rolled_back(overrides: list[str], root: Path) -> Finished:
    return submit_to_end([*overrides, *ROLL_BACK], folder=root / "output")


@pytest.fixture(scope="module")
def cut_off(rolled_back: Finished, root: Path) -> Path:
    """A copy of the run directory that has nothing after step 8."""
    copy = root.with_name("cut-off") / only_run(root).name
    shutil.copytree(only_run(root), copy)
    for later in copy.glob("checkpoints/step-*"):
        if later.name > "step-00000008":
            shutil.rmtree(later)
    return copy


@pytest.fixture(scope="module")
def done(rolled_back: Finished, cut_off: Path, overrides: list[str], root: Path) -> Path:
    """The run directory, once the run was allowed to go on."""
    words = [*overrides, "resume=auto", f"run.id={only_run(root).name}"]
    finished = submit_to_end(words, folder=root / "output")
    assert finished.exit_code == 0, finished.explain()
    return only_run(root)


def test_a_gate_rolls_back_to_where_the_training_stage_began(rolled_back: Finished, root: Path) -> None:
    run = only_run(root)
    assert rolled_back.exit_code == ExitCode.GATE_BLOCKED, rolled_back.explain()
    assert (ledger(run)["state"], stage_status(run, "pretrain"), stage_status(run, "anneal")) == (
        "blocked",
        "promoted",
        "pending",
    )
    (left,) = ledger(run)["rolled_back"]
    assert left["gate"]["decision"] == "roll_back"
    assert left["checkpoint"] == "checkpoints/step-00000015.rolled-back-1"
    assert (run / left["checkpoint"] / "manifest.json").is_file()
    assert last_checkpoint(run).name == "step-00000009"
    assert left["evaluation"]["path"] == "eval/anneal.rolled-back-1/quick.json"
    assert (run / left["evaluation"]["path"]).is_file()
    assert "resume=auto trains anneal again" in rolled_back.stderr
    shown = run_to_end([sys.executable, "-m", "launch.gate", str(run)], folder=root / "output").stdout
    assert "rolled back, its weights are in checkpoints/step-00000015.rolled-back-1:" in shown
    assert left["gate"]["reasons"][0] in shown


def test_a_roll_back_that_was_killed_on_the_way_is_done_to_its_end(
    rolled_back: Finished, overrides: list[str], root: Path
) -> None:
    """As after a kill between the last rename and the ledger: what the gate said stands in it, and no more."""
    run = root.with_name("half-rolled-back") / only_run(root).name
    shutil.copytree(only_run(root), run)
    whole = ledger(run)
    (left,) = whole["rolled_back"]
    entry = json.loads(json.dumps(left).replace(".rolled-back-1", ""))
    half = whole | {"stages": [whole["stages"][0], entry], "rolled_back": []}
    (run / "stages.json").write_text(json.dumps(half))
    words = [*overrides, *ROLL_BACK, f"run.root={run.parent}", f"run.id={run.name}", "resume=auto"]
    finished = submit_to_end(words, folder=run.parent / "output")
    assert finished.exit_code == ExitCode.GATE_BLOCKED, finished.explain()
    assert ledger(run)["rolled_back"] == whole["rolled_back"]
    assert ledger(run)["stages"] == whole["stages"]
    assert {step["attempt"] for step in records(run, "step")} == {0}


def test_measuring_changes_no_bit_of_the_run(done: Path, reference: Reference) -> None:
    assert ledger(done)["state"] == "done"
    assert numbers_by_step(records(done, "step")) == numbers_by_step(records(reference.directory, "step"))
    ours, theirs = contents(last_checkpoint(done)), contents(last_checkpoint(reference.directory))
    assert ours["files"] == theirs["files"]


def test_a_training_stage_is_measured_in_its_midst(done: Path) -> None:
    found = [(record["stage"], record["step"]) for record in records(done, "eval")]
    assert found == [
        ("start", 0),
        ("pretrain", 4),
        ("pretrain", 8),
        ("pretrain", 9),
        ("anneal", 15),
        ("anneal", 15),
    ]
    assert (done / "eval" / "pretrain" / "step-00000004" / "quick.json").is_file()
    assert [record["step"] for record in records(done, "eval") if record["in_between"]] == [4, 8]
    assert all((done / record["report"]).is_file() for record in records(done, "eval"))


def test_benchmarks_stand_in_the_records_and_item_by_item_in_the_report(done: Path) -> None:
    metrics = records(done, "eval")[-1]["metrics"]
    assert metrics["fcc_amateur_extra/items"] == 4
    assert metrics["fcc_amateur_extra/contaminated"] == 0.0
    assert metrics["human_eval/pass_at_1"] == 0.0
    items = read_items(done / "eval" / "anneal" / "quick.json")
    assert {name for name in items if "/" in name} == {
        "fcc_amateur_extra/acc",
        "bits_per_byte_prose/bits_per_byte",
        "human_eval/pass_at_1",
    }
    for name, found in items.items():
        assert found.value == pytest.approx(metrics[name], rel=1e-9)


def test_people_see_every_evaluation_and_every_item(done: Path) -> None:
    page = (done / "report.html").read_text()
    for heading in ("start", "pretrain, step 4", "pretrain, step 8", "pretrain", "anneal"):
        assert f'<th class="n">{heading}</th>' in page
    assert page.count("fcc_amateur_extra: 4 items") == 3  # of the start, and of both training stages
    assert "NameError" in page or "SyntaxError" in page  # what became of a program that the model wrote


def test_a_report_that_is_there_is_not_made_again(cut_off: Path, overrides: list[str]) -> None:
    """Steps 8 and 9 are come by once more: the same weights, whose numbers are read from the files."""
    reports = [cut_off / "eval" / "pretrain" / name for name in ("step-00000008/quick.json", "quick.json")]
    before = [report.stat().st_mtime_ns for report in reports]
    words = [*overrides, f"run.root={cut_off.parent}", f"run.id={cut_off.name}", "resume=auto", "run.until=pretrain"]
    finished = submit_to_end(words, folder=cut_off.parent / "output")
    assert finished.exit_code == 0, finished.explain()
    assert [report.stat().st_mtime_ns for report in reports] == before
    again = [record for record in records(cut_off, "eval") if record["attempt"] == 1]
    first = [record for record in records(cut_off, "eval") if record["attempt"] == 0 and record["stage"] == "pretrain"]
    assert [(record["step"], record["metrics"]) for record in again] == [
        (record["step"], record["metrics"]) for record in first if record["step"] >= 8
    ]


def test_an_evaluation_that_fails_leaves_the_run_alone(reference: Reference, tmp_path: Path) -> None:
    """Four-way questions need four documents: with one, the task fails on rank 0."""
    finished = submit_to_end(
        [
            *reference.overrides,
            f"run.root={tmp_path}",
            "eval.suites.quick.held_out_documents=1",
            "stages.pretrain.gate=null",
            "stages.anneal.gate=null",
        ],
        folder=tmp_path / "output",
    )
    assert finished.exit_code == 0, finished.explain()
    run = only_run(tmp_path)
    incidents = [record for record in records(run, "incident") if record["what"] == "evaluation_failed"]
    assert [record["step"] for record in incidents] == [0, 9, 15]
    assert "multiple_choice_items: 0" in incidents[0]["message"]
    assert numbers_by_step(records(run, "step")) == numbers_by_step(records(reference.directory, "step"))


def test_a_gate_does_not_pass_what_could_not_be_measured(reference: Reference, tmp_path: Path) -> None:
    words = [*reference.overrides, f"run.root={tmp_path}", "eval.suites.quick.held_out_documents=1"]
    finished = submit_to_end(words, folder=tmp_path / "output")
    assert finished.exit_code == ExitCode.GATE_BLOCKED, finished.explain()
    assert "its gate cannot decide" in finished.stderr
    assert stage_status(only_run(tmp_path), "pretrain") == "trained"


@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]])
def test_the_harness_by_hand_finds_what_the_run_found(done: Path, tmp_path: Path, launcher: Sequence[str]) -> None:
    words = ["-m", "eval.run", f"checkpoint={done}", "suite=quick", f"output={tmp_path / 'found.json'}"]
    finished = run_to_end([sys.executable, *launcher, *words], folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    assert "fcc_amateur_extra: 4 items" in (tmp_path / "found.html").read_text()
    found = json.loads((tmp_path / "found.json").read_text())["metrics"]
    of_run = json.loads((done / "eval" / "anneal" / "quick.json").read_text())["metrics"]
    assert found == pytest.approx(of_run, rel=1e-4)
    compare = [sys.executable, "-m", "eval.compare", str(tmp_path / "found.json")]
    finished = run_to_end([*compare, str(done / "eval" / "start" / "quick.json"), "--margin", "9"], folder=tmp_path)
    assert "on par with the partner's model" in finished.stdout
