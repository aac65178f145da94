"""Every kind of source, with rows that can be used and rows that cannot."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.data_schema import HubConfig, SourceConfig, SourceForm, SourceKind
from training.data.corpus import Seen, read_records
from training.data.readers.rows import Reason
from training.data.records import Quarantined, Record
from training.errors import ConfigError, DataError

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
LONE_SURROGATE = b'{"text": "\\ud800 alone"}'
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def read(source: SourceConfig, *, first_row: int = 0) -> tuple[dict[str, str], dict[str, Reason]]:
    """Return (id -> content, id -> reason)."""
    found = [one for _, one in read_records("mine", source, seen=Seen(), first_row=first_row)]
    contents = {one.id: one.content.decode() for one in found if isinstance(one, Record)}
    return contents, {one.id: one.fault.reason for one in found if isinstance(one, Quarantined)}


@pytest.mark.parametrize("suffix", PACKED)
def test_a_bad_line_of_json_does_not_end_the_reading(tmp_path: Path, suffix: str) -> None:
    lines = [
        b'{"text": "first", "other": [1, {"a": null}]}',
        b'{"text": "broken',
        b"",
        b'"no object"',
        b'{"text": "\xff"}',
        LONE_SURROGATE,
        b'{"texts": "none"}',
        b'{"text": 7}',
        b'{"text": "  "}',
        b'{"text": "first"}',
        b"[" * 100_000,
        b'{"text": "' + b"x" * 2000 + b'"}',
        b'{"text": "' + b"y" * 20_000 + b'"}',
        b'{"text": "last"}',
    ]
    path = tmp_path / f"lines.jsonl{suffix}"
    path.write_bytes(PACKED[suffix](b"\n".join(lines)))
    contents, reasons = read(SourceConfig(kind=SourceKind.json, path=str(path), max_record_bytes=1000))
    place = f"json/lines.jsonl{suffix}#"
    assert contents == {f"{place}0": "first", f"{place}13": "last"}
    assert reasons == {
        f"{place}1": Reason.bad_json,
        f"{place}3": Reason.bad_json,
        f"{place}4": Reason.invalid_utf8,
        f"{place}5": Reason.invalid_utf8,
        f"{place}6": Reason.bad_field,
        f"{place}7": Reason.bad_field,
        f"{place}8": Reason.empty,
        f"{place}9": Reason.duplicate,
        f"{place}10": Reason.oversized,
        f"{place}11": Reason.oversized,
        f"{place}12": Reason.oversized,
    }


def test_what_is_not_used_is_told_with_how_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "same"}) + "\n" + json.dumps({"text": "same"}) + "\n{" + "z" * 900)
    found = [one for _, one in read_records("m", SourceConfig(kind=SourceKind.json, path=str(path)), seen=Seen())]
    copy, broken = (one.as_json() for one in found if isinstance(one, Quarantined))
    assert copy == {"id": "json/a.jsonl#1", "reason": "duplicate", "detail": "of json/a.jsonl#0", "sample": "same"}
    assert broken["sample"] == "{" + "z" * 199


def test_ids_of_their_own_are_unique_and_of_one_kind(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "text": "one"},
        {"id": 7, "text": "two"},
        {"id": "a", "text": "three"},
        {"text": "four"},
        {"id": "", "text": "five"},
        {"id": True, "text": "six"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    contents, reasons = read(SourceConfig(kind=SourceKind.json, path=str(path), id_field="id"))
    assert contents == {"a": "one", "7": "two"}
    place = "json/a.jsonl#"
    expected = {"a": Reason.repeated_id, **{f"{place}{row}": Reason.bad_field for row in (3, 4, 5)}}
    assert reasons == expected


def test_a_line_is_a_document_and_max_documents_counts_those_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\n\xff\none\ntwo\nthree")
    (tmp_path / "b.txt").write_bytes(b"four\n")
    contents, reasons = read(SourceConfig(kind=SourceKind.text_lines, path=str(tmp_path)))
    place = "text_lines/a.txt#"
    assert contents == {f"{place}0": "one", f"{place}4": "two", f"{place}5": "three", "text_lines/b.txt#0": "four"}
    assert reasons == {f"{place}1": Reason.empty, f"{place}2": Reason.invalid_utf8, f"{place}3": Reason.duplicate}
    contents, _ = read(SourceConfig(kind=SourceKind.text_lines, path=str(tmp_path), max_documents=2))
    assert list(contents.values()) == ["one", "two"]


def test_a_file_larger_than_a_record_may_be_is_put_aside_unread(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 11)
    (tmp_path / "b.txt").write_text("x" * 10)
    contents, reasons = read(SourceConfig(kind=SourceKind.text_files, path=str(tmp_path), max_record_bytes=10))
    assert list(contents) == ["text_files/b.txt"]
    assert reasons == {"text_files/a.txt": Reason.oversized}


@pytest.mark.parametrize(
    ("kind", "writer"),
    [(SourceKind.parquet, None), (SourceKind.arrow, pa.ipc.new_stream), (SourceKind.arrow, pa.ipc.new_file)],
)
def test_rows_of_tables_are_read_and_bad_utf8_in_one_of_them_costs_only_that_one(
    tmp_path: Path, kind: SourceKind, writer: Any
) -> None:
    raw = pa.array([b"one", b"\xff\xfe", None, b"two", b"three"], type=pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())  # as a careless writer leaves it
    table = pa.table({"body": text, "key": [10, 11, 12, 13, 14], "other": [[1.5]] * 5})
    path = tmp_path / f"part[1].{kind}"
    if writer is None:
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, writer(file, table.schema) as stream:
            stream.write_table(table)
    source = SourceConfig(kind=kind, path=str(tmp_path), text_field="body", id_field="key")
    contents, reasons = read(source)
    assert contents == {"10": "one", "13": "two", "14": "three"}
    place = f"{kind}/part[1].{kind}#"
    assert reasons == {f"{place}1": Reason.invalid_utf8, "12": Reason.bad_field}
    assert read(source, first_row=3)[0] == {"13": "two", "14": "three"}


@pytest.mark.parametrize("kind", [SourceKind.json, SourceKind.parquet])
def test_conversations_and_pairs_are_records_of_their_fields(tmp_path: Path, kind: SourceKind) -> None:
    rows = [
        {"id": "c", "messages": MESSAGES, "prompt": None, "chosen": None, "rejected": None},
        {"id": "p", "messages": None, "prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MESSAGES[1:]},
    ]
    path = tmp_path / f"rows.{kind}"
    if kind is SourceKind.json:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    for form, used, unused in ((SourceForm.conversations, "c", "p"), (SourceForm.preferences, "p", "c")):
        contents, reasons = read(SourceConfig(kind=kind, path=str(path), form=form, id_field="id"))
        assert reasons == {unused: Reason.bad_field}
        assert list(contents) == [used]
        expected = {name: value for name, value in rows["cp".index(used)].items() if value is not None and name != "id"}
        assert json.loads(contents[used]) == expected


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n' * 1000)[:-20])
    with pytest.raises(DataError, match=r"data\.sources\.mine: .*a\.jsonl\.gz cannot be read: EOFError"):
        read(SourceConfig(kind=SourceKind.json, path=str(tmp_path)))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(DataError, match=r"b\.parquet cannot be read"):
        read(SourceConfig(kind=SourceKind.parquet, path=str(tmp_path / "b.parquet")))


def test_a_dataset_of_the_hub_needs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = SourceConfig(kind=SourceKind.hub, path="owner/no_such_set", hub=HubConfig(split="train"))
    with pytest.raises((DataError, ConfigError), match=r"owner/no_such_set.*\n.*-> prepare the data where there is a"):
        read(source)


@given(
    lines=st.lists(
        st.one_of(
            st.text().map(lambda text: json.dumps({"text": text}).encode()),
            st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")),
        ),
        max_size=30,
    ),
    first_row=st.integers(0, 30),
)
def test_every_line_is_used_or_put_aside_once_and_reading_can_begin_anywhere(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], first_row: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    source = SourceConfig(kind=SourceKind.json, path=str(path))
    contents, reasons = read(source)
    records = [f"json/a.jsonl#{row}" for row, line in enumerate(lines) if line.strip()]
    assert sorted([*contents, *reasons]) == sorted(records)
    later = [place for place in records if int(place.partition("#")[2]) >= first_row]
    assert sorted(one for found in read(source, first_row=first_row) for one in found) == sorted(later)
