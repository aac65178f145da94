"""A gate that does not promote stops the run with words, and a changed gate lets it go on from where it stopped."""

from pathlib import Path

import pytest

from tests.integration.reading import ledger, numbers_by_step, records
from tests.integration.running import Finished, only_run, submit_to_end
from training.errors import ExitCode

SHORT = ["experiment=smoke", "stages.pretrain.tokens=1536", "stages.anneal.tokens=1024"]
"""Three steps and two."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def overrides(root: Path, prepared_root: Path) -> list[str]:
    return [*SHORT, f"run.root={root}", f"data.prepared_root={prepared_root}"]


@pytest.fixture(scope="module")
def blocked(root: Path, overrides: list[str]) -> Finished:
    return submit_to_end([*overrides, "stages.pretrain.gate.max_bits_per_byte=0.1"], folder=root / "output")


def test_a_blocked_run_says_why_and_trains_no_further(blocked: Finished, root: Path) -> None:
    run = only_run(root)
    assert blocked.exit_code == ExitCode.GATE_BLOCKED, blocked.explain()
    assert ledger(run)["state"] == "blocked"
    assert {step["stage"] for step in records(run, "step")} == {"pretrain"}
    (gate,) = records(run, "gate")
    assert gate["decision"] == "block"
    last_lines = "\n".join(blocked.stderr.splitlines()[-3:])
    for text in (last_lines, (run / "report.html").read_text().replace("&gt;", ">")):
        assert gate["reasons"][0] in text
    assert "> 0.1 (threshold): not met" in last_lines
    assert "resume=auto" in last_lines


def test_a_loosened_gate_lets_the_run_go_on_without_training_again(
    blocked: Finished, root: Path, overrides: list[str]
) -> None:
    run = only_run(root)
    assert blocked.exit_code == ExitCode.GATE_BLOCKED
    before = numbers_by_step(records(run, "step"))
    loosened = [*overrides, "stages.pretrain.gate.max_bits_per_byte=6.0", "resume=auto", f"run.id={run.name}"]

    finished = submit_to_end(loosened, folder=root / "output")

    assert finished.exit_code == 0, finished.explain()
    assert only_run(root) == run
    assert ledger(run)["state"] == "done"
    steps = records(run, "step")
    assert [(step["step"], step["stage"], step["attempt"]) for step in steps] == [
        (1, "pretrain", 0),
        (2, "pretrain", 0),
        (3, "pretrain", 0),
        (4, "anneal", 1),
        (5, "anneal", 1),
    ]
    assert {number: numbers_by_step(steps)[number] for number in before} == before
    # Not evaluated again either: the gate was asked again, with the same number.
    assert [record["stage"] for record in records(run, "eval")] == ["start", "pretrain", "anneal"]
    assert [record["decision"] for record in records(run, "gate")] == ["block", "promote", "promote"]
