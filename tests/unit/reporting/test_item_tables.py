import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.reporting.example_items import HALF_CHARACTER, LONG_ANSWER, MARKUP, write_example_report
from training.reporting import item_tables
from training.reporting.item_tables import ItemTable, items_in_run, read_items

REPORT = "eval/pretrain/quick.json"


def tables(tmp_path: Path, most_rows: int = 100) -> dict[str, ItemTable]:
    return {t.task: t for t in read_items(write_example_report(tmp_path / "quick.json"), most_rows=most_rows)}


def test_every_kind_of_item_has_a_row_that_people_can_read(tmp_path: Path) -> None:
    found = tables(tmp_path)
    shown = {name: dict(zip(table.columns, table.rows[0], strict=True)) for name, table in found.items()}
    assert shown["held_out"] == {"id": "kjv/Genesis 1", "bits": 450.25, "num_bytes": 151.0, "num_tokens": 64.0}
    assert shown["multiple_choice"]["correct"] is False
    assert shown["cissp"] == {
        "id": "q1",
        "acc": 1.0,
        "prompt": "Question q1: yes or no?",
        "answer": "1 (log-likelihoods -6.185, -1.5, -11.5)",
        "target": "1",
    }
    assert shown["human_eval"]["answer"] == "1: passed\n2: failed: raised NameError"
    assert shown["bits_per_byte_prose"]["bits_per_byte"] == 11064 / 3352
    assert shown["bfcl_multi_turn"] == {
        "id": "book_flight",
        "pass_at_1": 0.5,
        "pass_hat_2": 0.0,
        "tries": "1: solved (2 turns, 3 calls)\n2: not solved: the state differs (2 turns, 3 calls)",
    }
    assert found["regex_match"].rows[3][3] == "1: Yes.\n2: No."


def test_rows_are_the_first_items_and_the_others_are_counted(tmp_path: Path) -> None:
    table = tables(tmp_path, most_rows=5)["regex_match"]
    assert [row[0] for row in table.rows] == ["markup", "half", "long", "plain 0", "plain 1"]
    assert table.num_left_out == 198
    assert tables(tmp_path)["cissp"].num_left_out == 0


def test_answers_are_bounded_and_can_be_encoded_and_nothing_else_is_done_to_them(tmp_path: Path) -> None:
    rows = tables(tmp_path)["regex_match"].rows
    assert rows[0][3] == MARKUP
    assert rows[1][3] == HALF_CHARACTER.replace("\ud83d", "?")
    assert rows[2][3] == f"{LONG_ANSWER[:1000]} … ({len(LONG_ANSWER) - 1000:,} more characters)"


def test_a_long_prompt_keeps_its_end(tmp_path: Path) -> None:
    item = {"id": "1", "prompt": f"{LONG_ANSWER}What now?"}
    report = write_example_report(tmp_path / "quick.json", {"tasks": {"t": {"items": [item]}}})
    prompt = read_items(report, most_rows=1)[0].rows[0][1]
    assert isinstance(prompt, str)
    assert prompt.startswith("… ")
    assert prompt.endswith("What now?")
    assert len(prompt) == 1002


DAMAGED: dict[str, str] = {
    "nothing": "",
    "torn": '{"tasks": {"cissp": {"items": [{"id"',
    "a list": "[]",
    "no tasks": "{}",
    "tasks that are a list": '{"tasks": []}',
    "a task that is a text": '{"tasks": {"cissp": "x"}}',
    "items that are texts": '{"tasks": {"cissp": {"items": ["x"]}}}',
    "a task whose name is a path": '{"tasks": {"../../x": {"items": [{"id": "1"}]}}}',
    "a task whose name is half a character": '{"tasks": {"\\ud83d": {"items": [{"id": "1"}]}}}',
    "a number without end": f'{{"tasks": {{"cissp": {{"items": [{{"scores": {{"acc": 1{"0" * 400}}}}}]}}}}}}',
    "too deep": f'{{"tasks": {"[" * 200}{"]" * 200}}}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_report_gives_a_reason_and_no_table(tmp_path: Path, content: str) -> None:
    path = tmp_path / REPORT
    path.parent.mkdir(parents=True)
    path.write_text(content)
    found = items_in_run(tmp_path, REPORT, most_rows=10)
    assert found.tables == []
    assert found.fault
    found.fault.encode()


def test_what_is_no_file_of_the_run_is_not_read(tmp_path: Path) -> None:
    secret = write_example_report(tmp_path / "elsewhere" / "quick.json")
    run = tmp_path / "run"
    write_example_report(run / REPORT)
    (run / "eval" / "link.json").symlink_to(secret)
    (run / "eval" / "folder").symlink_to(secret.parent)
    (run / "eval" / "loop.json").symlink_to("loop.json")
    os.mkfifo(run / "eval" / "pipe.json")
    assert items_in_run(run, REPORT, most_rows=1).fault is None
    outside = ["../elsewhere/quick.json", str(secret), "eval/link.json", "eval/folder/quick.json", "config.yaml"]
    for report in outside:
        assert items_in_run(run, report, most_rows=1).fault == "it does not lie in the run's folder eval"
    assert items_in_run(run, "eval/none.json", most_rows=1).fault == "it is not there"
    for report in ("eval/loop.json", "eval/pipe.json", "eval", "eval/pretrain", "eval/\0"):
        found = items_in_run(run, report, most_rows=1)
        assert found.fault, report
        assert found.tables == []


def test_a_report_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_tables, "LARGEST_REPORT_BYTES", 1000)
    write_example_report(tmp_path / REPORT)
    assert items_in_run(tmp_path, REPORT, most_rows=1).fault == "it is larger than 1,000 bytes"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from(["id", "key", "scores", "prompt", "answer", "target", "tries", "bits"]) | st.text(max_size=4)
_ITEMS = st.lists(st.dictionaries(_NAMES, _VALUES, max_size=6), max_size=4)


@given(items=_ITEMS, most_rows=st.integers(1, 5))
def test_whatever_an_item_holds_its_cells_are_numbers_and_bounded_texts(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, Any]], most_rows: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps({"tasks": {"cissp": {"items": items}}}))
    for table in read_items(path, most_rows=most_rows):
        assert len(table.rows) + table.num_left_out == len(items)
        assert all(len(row) == len(table.columns) for row in table.rows)
        for cell in [*table.columns, *(cell for row in table.rows for cell in row)]:
            assert cell is None or isinstance(cell, bool | float | str)
            if isinstance(cell, str):
                assert len(cell.encode()) < 5000
