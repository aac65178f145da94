import json
from pathlib import Path

import pytest

from training.data.__main__ import main
from training.errors import ExitCode


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    return ["experiment=smoke", f"data.prepared_root={tmp_path}"]


def test_prepare_prints_a_line_per_source_and_inspect_shows_what_it_wrote(
    overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *overrides]) == ExitCode.DONE
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["source", "form", "records"]
    assert main(["inspect", *overrides]) == ExitCode.DONE
    manifest = json.loads(capsys.readouterr().out)
    assert [line.split()[0] for line in table[1:-2]] == list(manifest["sources"])
    assert table[-2].startswith("python: not used: 1 duplicate; see ")
    assert Path(table[-2].partition("; see ")[2]).is_file()


def test_inspect_shows_the_texts_of_a_batch(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *overrides]) == ExitCode.DONE
    capsys.readouterr()
    assert main(["inspect", "--batch", "pretrain:3", *overrides]) == ExitCode.DONE
    shown = capsys.readouterr().out
    title, *lines = shown.splitlines()
    assert "training stage pretrain, batch 3, batch_id " in title
    samples = [line.split() for line in lines if line.split()[0].isdecimal()]
    assert [words[0] for words in samples] == [str(number) for number in range(24, 32)]
    assert sum(int(words[4]) for words in samples) == len(lines) - len(samples), "a line for each record"
    assert main(["inspect", "--batch", "4", *overrides]) == ExitCode.DONE
    assert capsys.readouterr().out == shown, "the fourth step has the batch at place 3"


def test_mistakes_are_told_with_their_exit_code(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *overrides]) == ExitCode.DATA
    assert f"python -m training.data prepare {overrides[0]}" in capsys.readouterr().err
    assert main(["prepare", "experiment=no_such"]) == ExitCode.BAD_CONFIG
    assert main(["prepare", *overrides]) == ExitCode.DONE
    assert main(["inspect", "--batch", "no_such:3", *overrides]) == ExitCode.BAD_CONFIG
    assert "--batch=no_such:3" in capsys.readouterr().err
