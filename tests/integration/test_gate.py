"""A gate that does not promote stops the run with words; a changed gate, more items or a person let it go on."""

import json
import sys
from pathlib import Path

import pytest

from eval.evidence import decide_from_reports
from tests.integration.reading import ledger, numbers_by_step, records
from tests.integration.running import SMOKE, Finished, only_run, run_to_end, submit_to_end
from training.config.load import load_frozen
from training.errors import ExitCode

SHORT = [*SMOKE, "stages.pretrain.tokens=1536", "stages.anneal.tokens=1024"]
"""Three steps and two."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def overrides(root: Path, prepared_root: Path) -> list[str]:
    return [*SHORT, f"run.root={root}", f"data.prepared_root={prepared_root}"]


@pytest.fixture(scope="module")
def blocked(root: Path, overrides: list[str]) -> Finished:
    return submit_to_end([*overrides, "stages.pretrain.gate.conditions.quality.at_most=0.1"], folder=root / "output")


@pytest.fixture(scope="module")
def loosened(blocked: Finished, root: Path, overrides: list[str]) -> list[str]:
    """A gate that lets the first training stage pass, and one that twenty questions cannot decide."""
    assert blocked.exit_code == ExitCode.GATE_BLOCKED, blocked.explain()
    measured = records(only_run(root), "eval")[-1]["metrics"]["multiple_choice_accuracy"]
    answers = f"{{metric: multiple_choice_accuracy, at_least: {min(max(measured, 0.2), 0.8)}}}"
    return [
        *overrides,
        "stages.pretrain.gate.conditions.quality.at_most=6.0",
        f"+stages.anneal.gate.conditions.answers={answers}",
        "stages.anneal.gate.when_unclear=more_items",
        "stages.anneal.gate.max_looks=2",
        "resume=auto",
        f"run.id={only_run(root).name}",
    ]


@pytest.fixture(scope="module")
def undecided(loosened: list[str], root: Path) -> Finished:
    return submit_to_end(loosened, folder=root / "output")


def gate_command(root: Path, *words: str) -> Finished:
    return run_to_end([sys.executable, "-m", "launch.gate", str(only_run(root)), *words], folder=root / "output")


def test_a_blocked_run_says_why_and_trains_no_further(blocked: Finished, root: Path) -> None:
    run = only_run(root)
    assert blocked.exit_code == ExitCode.GATE_BLOCKED, blocked.explain()
    assert {step["stage"] for step in records(run, "step") if step["attempt"] == 0} == {"pretrain"}
    gate = records(run, "gate")[0]
    assert gate["decision"] == "block"
    assert "items of held_out stand" in gate["reasons"][1]
    last_lines = "\n".join(blocked.stderr.splitlines()[-3:])
    for text in (last_lines, (run / "report.html").read_text().replace("&gt;", ">")):
        assert gate["reasons"][0] in text
    assert "at most 0.1 was asked: missed" in last_lines
    assert "resume=auto" in last_lines


def test_a_loosened_gate_lets_the_run_go_on_without_training_or_evaluating_again(
    undecided: Finished, root: Path
) -> None:
    run = only_run(root)
    steps = records(run, "step")
    assert [(step["step"], step["stage"], step["attempt"]) for step in steps] == [
        (1, "pretrain", 0),
        (2, "pretrain", 0),
        (3, "pretrain", 0),
        (4, "anneal", 1),
        (5, "anneal", 1),
    ]
    assert [record["stage"] for record in records(run, "eval")][:2] == ["start", "pretrain"]
    assert [record["decision"] for record in records(run, "gate")][:2] == ["block", "promote"]


def test_a_gate_that_cannot_decide_asks_for_more_items_and_then_says_so(undecided: Finished, root: Path) -> None:
    run = only_run(root)
    assert undecided.exit_code == ExitCode.GATE_BLOCKED, undecided.explain()
    first, second = [record for record in records(run, "eval") if record["stage"] == "anneal"]
    assert second["metrics"]["multiple_choice_items"] == 2 * first["metrics"]["multiple_choice_items"]
    decisions = [record for record in records(run, "gate") if record["stage"] == "anneal"]
    assert [record["decision"] for record in decisions] == ["more_items", "block"]
    assert "cannot be decided" in "\n".join(decisions[-1]["reasons"])


def test_a_decision_can_be_made_again_from_the_files(undecided: Finished, root: Path) -> None:
    assert undecided.exit_code == ExitCode.GATE_BLOCKED
    run = only_run(root)
    entry = next(entry for entry in ledger(run)["stages"] if entry["name"] == "anneal")
    gate = load_frozen(run).stages["anneal"].gate
    assert gate is not None
    baselines = {"previous": run / "eval" / "pretrain" / "quick.json"}
    again = decide_from_reports(gate, run / entry["evaluation"]["path"], baselines, look=entry["gate"]["look"])
    assert json.loads(json.dumps(again.numbers)) == entry["gate"]["numbers"]
    assert list(again.reasons) == entry["gate"]["reasons"]


def test_a_person_lets_it_go_on_and_stays_in_the_ledger(undecided: Finished, loosened: list[str], root: Path) -> None:
    assert undecided.exit_code == ExitCode.GATE_BLOCKED
    run = only_run(root)
    before = numbers_by_step(records(run, "step"))
    shown = gate_command(root)
    assert "anneal: blocked, gate: block" in shown.stdout
    refused = gate_command(root, "pretrain", "approve", "--by", "Ada", "--because", "x")
    assert (refused.exit_code, "its gate asks nobody" in refused.stderr) == (ExitCode.BAD_CONFIG, True)
    answered = gate_command(root, "anneal", "approve", "--by", "Ada", "--because", "the samples read well")
    assert answered.exit_code == 0, answered.explain()

    finished = submit_to_end(loosened, folder=root / "output")

    assert finished.exit_code == 0, finished.explain()
    assert ledger(run)["state"] == "done"
    assert numbers_by_step(records(run, "step")) == before
    gate = records(run, "gate")[-1]
    assert gate["decision"] == "promote"
    assert gate["reasons"][-1].startswith("approved by Ada on ")
    assert gate["reasons"][-1].endswith("the samples read well")
    assert len(records(run, "eval")) == 4
