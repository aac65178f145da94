import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.data_schema import SourceConfig, SourceKind
from training.data.corpus import Seen, is_held_out, read_documents, read_records
from training.data.readers.rows import Reason
from training.data.records import Quarantined, Record
from training.errors import ConfigError


def text_files(path: Path | str, *, max_documents: int | None = None) -> SourceConfig:
    return SourceConfig(kind=SourceKind.text_files, path=str(path), max_documents=max_documents)


def test_kjv_has_every_chapter_and_no_verse_numbers() -> None:
    documents = list(read_documents("kjv", SourceConfig(kind=SourceKind.kjv)))
    assert len(documents) == 1189
    assert documents[0].id == "kjv/Genesis 1"
    assert documents[-1].id == "kjv/Revelation 22"
    lines = documents[0].text.splitlines()
    assert lines[0] == "In the beginning God created the heaven and the earth."
    assert len(lines) == 31
    assert not any(character.isdigit() for document in documents for character in document.text)


def test_stdlib_has_no_tests_and_no_installed_packages() -> None:
    source = SourceConfig(kind=SourceKind.python_stdlib, max_documents=400)
    ids = [document.id for document in read_documents("code", source)]
    assert len(ids) == 400
    assert ids == sorted(ids)
    assert "python_stdlib/argparse.py" in ids
    assert not [i for i in ids if {"test", "tests", "idle_test", "site-packages"} & set(i.split("/"))]


def test_files_that_give_no_document_are_counted_by_reason(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("same")
    (folder / "b.txt").write_bytes(b"\xff\xfe not utf-8")
    (folder / "c.txt").write_text(" \n")
    (folder / "d.txt").write_text("same")
    (folder / "sub" / "e.txt").write_text("line\r\nline\n", newline="")
    (folder / ".hidden").write_text("hidden")
    found = [one for _, one in read_records("mine", text_files(folder), seen=Seen())]
    documents = [one for one in found if isinstance(one, Record)]
    assert [one.id for one in documents] == ["text_files/a.txt", "text_files/sub/e.txt"]
    assert documents[1].text == "line\r\nline\n"
    reasons = {one.id: one.fault.reason for one in found if isinstance(one, Quarantined)}
    assert reasons == {
        "text_files/b.txt": Reason.invalid_utf8,
        "text_files/c.txt": Reason.empty,
        "text_files/d.txt": Reason.duplicate,
    }


def test_a_glob_takes_the_matching_files_and_ids_count_from_its_fixed_part(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "sub/c.txt"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(name)
    documents = read_documents("mine", text_files(tmp_path / "texts" / "**" / "*.txt"))
    assert [one.id for one in documents] == ["text_files/a.txt", "text_files/sub/c.txt"]
    documents = read_documents("one", text_files(tmp_path / "texts" / "b.md"))
    assert [one.id for one in documents] == ["text_files/b.md"]


def test_a_source_without_files_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources\.mine\.path=.*no file"):
        list(read_documents("mine", text_files(tmp_path / "nothing" / "*.txt")))
    with pytest.raises(ConfigError, match="needs one"):
        list(read_documents("mine", SourceConfig(kind=SourceKind.text_files)))


def test_reading_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "from pathlib import Path; from training.config.schema import *; from training.data.corpus import *;"
        f"import pyarrow as pa; import pyarrow.parquet as pq; path = {str(tmp_path / 'one.parquet')!r};"
        "pq.write_table(pa.table({'text': ['one', 'two']}), path);"
        "assert len(list(read_documents('k', SourceConfig(kind=SourceKind.parquet, path=path)))) == 2"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=100)
    assert list(home.iterdir()) == []


def test_holding_out_depends_on_the_id_alone() -> None:
    # Values computed once with sha256: they may never change, or documents would move into training.
    assert is_held_out("kjv/Genesis 9", 0.05)
    assert not is_held_out("kjv/Genesis 1", 0.05)


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_holds_out_every_document_that_a_smaller_one_does(name: str, a: float, b: float) -> None:
    assert is_held_out(name, min(a, b)) <= is_held_out(name, max(a, b))
    assert not is_held_out(name, 0.0)
    assert is_held_out(name, 1.0)


def test_the_held_out_share_is_close_to_the_fraction() -> None:
    # 4 standard deviations of a binomial share with 10,000 draws: 4 * sqrt(.05 * .95 / 10000) = 0.0087
    assert sum(is_held_out(f"document {i}", 0.05) for i in range(10_000)) / 10_000 == pytest.approx(0.05, abs=0.0087)
