import json
from pathlib import Path

import pytest

from launch.gate import main
from training.config.approval import Answer, approval_of
from training.errors import DataError, ExitCode

WORDS = ["--by", "Ada", "--because", "read the samples"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    report = tmp_path / "eval" / "pretrain" / "quick.json"
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    gate = {"decision": "ask", "reasons": ["bits_per_byte is 2.7: missed"]}
    evaluation = {"path": "eval/pretrain/quick.json", "metrics": {}}
    stages = [
        {"name": "pretrain", "status": "blocked", "evaluation": evaluation, "gate": gate},
        {"name": "anneal", "status": "pending", "evaluation": None, "gate": None},
    ]
    (tmp_path / "stages.json").write_text(json.dumps({"stages": stages}))
    return tmp_path


def report_of(run: Path) -> Path:
    return run / "eval" / "pretrain" / "quick.json"


def test_what_the_gates_said_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pretrain: blocked, gate: ask",
        "  bits_per_byte is 2.7: missed",
        "anneal: pending",
    ]


@pytest.mark.parametrize("answer", list(Answer))
def test_an_answer_counts_for_the_report_that_was_judged(
    answer: Answer, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert approval_of(run, "pretrain", report_of(run)) is None
    assert main([str(run), "pretrain", answer, *WORDS]) == 0
    assert f"run.id={run.name} resume=auto" in capsys.readouterr().out
    given = approval_of(run, "pretrain", report_of(run))
    assert given is not None
    assert (given.answer, given.by, given.because) == (answer, "Ada", "read the samples")
    report_of(run).write_text('{"another": 1}')
    assert approval_of(run, "pretrain", report_of(run)) is None


def test_the_latest_answer_counts(run: Path) -> None:
    assert main([str(run), "pretrain", "approve", *WORDS]) == 0
    assert main([str(run), "pretrain", "reject", *WORDS]) == 0
    given = approval_of(run, "pretrain", report_of(run))
    assert given is not None
    assert given.answer == Answer.reject


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["anneal", "approve", *WORDS], "its gate asks nobody"),
        (["anneel", "approve", *WORDS], "it has: pretrain, anneal"),
        (["pretrain", "approve", "--by", "Ada"], "--because"),
        (["pretrain", "approve", "--by", " ", "--because", "x"], "--by"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_and_changes_nothing(
    words: list[str], reason: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    assert main([str(run), *words]) == ExitCode.BAD_CONFIG
    assert reason in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("content", ["", "[]", '{"stages": [{}]}'])
def test_a_folder_that_is_no_run_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stages.json").write_text(content)
    assert main([str(tmp_path)]) == ExitCode.BAD_CONFIG
    assert "is no ledger" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"answer": "perhaps", "by": "A", "because": "", "time": "", "report_sha256": ""}']
)
def test_a_file_that_is_no_answer_is_refused(content: str, run: Path) -> None:
    (run / "approvals").mkdir()
    (run / "approvals" / "pretrain.json").write_text(content)
    with pytest.raises(DataError, match="is no answer to a gate"):
        approval_of(run, "pretrain", report_of(run))
