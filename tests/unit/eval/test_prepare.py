import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.registry import EVALS, SOURCES, Wheel, task_file
from eval.prepare import EXTRACT, MAKE, main, prepare
from training.config.benchmarks import BENCHMARKS, BenchmarkKind, items_file, missing
from training.errors import DataError, ExitCode

RIGHT = "Which one?\nA. this\nB. that\nC. both\nD. neither\nAnswer:"
CUT_SHORT = "Which one?\nA. this\nB. that\nAnswer:"


def make_wheel(folder: Path, questions: Sequence[str]) -> Wheel:
    """Write a wheel that pip takes for `evals`, with these questions of the set cissp; return what it is pinned as."""
    samples = [
        {"input": [{"role": "system", "content": "…"}, {"role": "user", "content": question}], "ideal": "B"}
        for question in questions
    ]
    folder.mkdir()
    info = f"evals-{EVALS.version}.dist-info"
    with zipfile.ZipFile(folder / EVALS.filename, "w") as wheel:
        wheel.writestr(
            "evals/registry/data/cissp-study-questions/samples.jsonl", "\n".join(map(json.dumps, samples)) + "\n"
        )
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: evals\nVersion: {EVALS.version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return replace(EVALS, sha256=hashlib.sha256((folder / EVALS.filename).read_bytes()).hexdigest())


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small wheel, to which the benchmark cissp is pinned."""
    folder = tmp_path / "wheels"
    monkeypatch.setitem(SOURCES, "cissp", make_wheel(folder, [RIGHT, RIGHT, CUT_SHORT]))
    return folder


def read_items(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in items_file(root, "cissp").read_text().splitlines()]


def test_every_benchmark_has_a_source_a_reader_and_a_task_of_its_version() -> None:
    assert list(SOURCES) == list(BENCHMARKS)
    assert EXTRACT.keys() | MAKE.keys() == BENCHMARKS.keys()
    assert {name for name, source in SOURCES.items() if isinstance(source, Wheel)} == EXTRACT.keys()
    for name, benchmark in BENCHMARKS.items():
        path = task_file(name)
        assert (path is None) == (benchmark.kind is BenchmarkKind.workflow)
        assert path is None or path.is_file()


def test_damaged_and_repeated_items_are_left_out_and_counted(tmp_path: Path, wheels: Path) -> None:
    manifest = prepare("cissp", tmp_path, wheels=wheels)
    assert (manifest.num_items, manifest.num_dropped) == (1, 2)
    assert read_items(tmp_path) == [
        {"question": "Which one?", "choices": ["this", "that", "both", "neither"], "answer": 1}
    ]
    assert missing(tmp_path, ["cissp"]) == []


def test_what_is_there_stays_as_it_is(tmp_path: Path, wheels: Path) -> None:
    first = prepare("cissp", tmp_path, wheels=wheels)
    inode = items_file(tmp_path, "cissp").stat().st_ino
    (wheels / EVALS.filename).unlink()  # nothing has to be read again
    assert prepare("cissp", tmp_path, wheels=wheels) == first
    assert items_file(tmp_path, "cissp").stat().st_ino == inode


def test_what_was_changed_is_made_again(tmp_path: Path, wheels: Path) -> None:
    prepare("cissp", tmp_path, wheels=wheels)
    items_file(tmp_path, "cissp").write_text("")
    prepare("cissp", tmp_path, wheels=wheels)
    assert len(read_items(tmp_path)) == 1


def test_what_came_from_another_wheel_is_made_again(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("cissp", tmp_path, wheels=wheels)
    newer = tmp_path / "newer"
    monkeypatch.setitem(SOURCES, "cissp", make_wheel(newer, [RIGHT, RIGHT.replace("this", "these")]))
    assert prepare("cissp", tmp_path, wheels=newer).num_items == 2


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, wheels: Path) -> None:
    with (wheels / EVALS.filename).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match=r"has sha256 .* was expected"):
        prepare("cissp", tmp_path, wheels=wheels)
    assert not items_file(tmp_path, "cissp").parent.exists()


def test_a_folder_without_the_wheel_is_refused(tmp_path: Path, wheels: Path) -> None:
    (wheels / EVALS.filename).unlink()
    with pytest.raises(DataError, match="is not there"):
        prepare("cissp", tmp_path, wheels=wheels)


def test_pip_gets_the_wheel_where_it_is_set_up_to_look(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    assert prepare("cissp", tmp_path / "prepared").num_items == 1
    assert [path.name for path in (tmp_path / "prepared" / "wheels").iterdir()] == [EVALS.filename]


def test_what_pip_says_reaches_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    assert main(["cissp", "--root", str(tmp_path)]) == ExitCode.DATA
    assert "No matching distribution found for evals" in capsys.readouterr().err


def test_the_command_says_what_it_made(tmp_path: Path, wheels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cissp", "--root", str(tmp_path), "--wheels", str(wheels)]) == ExitCode.DONE
    assert capsys.readouterr().out == "cissp 1: 1 items, 2 dropped, from evals 3.0.1.post1 (MIT)\n"


@pytest.mark.parametrize("arguments", [[], ["cisp"]])
def test_the_command_names_what_there_is(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitCode.BAD_CONFIG
    assert "cissp" in capsys.readouterr().err
