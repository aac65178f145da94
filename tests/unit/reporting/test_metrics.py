import json
import math
import os
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.reporting.example_run import eval_record, records, step_record
from training.errors import StorageError
from training.reporting import metrics
from training.reporting.metrics import (
    MetricsLog,
    MetricsReader,
    last_record,
    last_steps,
    latest_steps,
    read_metrics,
)
from training.reporting.records import (
    CheckpointRecord,
    EvalRecord,
    GateRecord,
    IncidentRecord,
    Record,
    StageRecord,
    StepRecord,
)

_TEXT = st.text(max_size=20)
_WHOLE = st.integers(-(2**63), 2**63 - 1)
_SAMPLES = st.lists(st.fixed_dictionaries({"prompt": _TEXT, "text": _TEXT}), max_size=2)
_FINITE = st.floats(allow_nan=False)
_RECORDS: st.SearchStrategy[Record] = st.one_of(
    *(
        st.builds(record_type, step=st.integers(0, 10**9), attempt=_WHOLE, **fields)
        for record_type, fields in (
            (
                StepRecord,
                {name: _FINITE for name in ("loss", "grad_norm", "lr", "tokens_per_second", "mfu", "seconds")}
                | {"tokens": _WHOLE},
            ),
            (
                EvalRecord,
                {"bits_per_byte": _FINITE, "metrics": st.dictionaries(_TEXT, _FINITE), "seconds": _FINITE}
                | {"samples": _SAMPLES},
            ),
            (GateRecord, {}),
            (CheckpointRecord, {"seconds": _FINITE, "num_bytes": _WHOLE}),
            (IncidentRecord, {}),
            (StageRecord, {}),
        )
    )
)


def _write(path: Path, written: list[Record]) -> None:
    log = MetricsLog(path)
    for record in written:
        log.append(record)
    log.close()


@given(written=st.lists(_RECORDS, max_size=8))
def test_every_record_comes_back_as_it_was_written(written: list[Record], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    _write(path, written)
    metrics = read_metrics(path)
    assert metrics.records == written
    assert metrics.num_torn_lines == 0
    assert metrics.times_seconds == sorted(metrics.times_seconds)


def test_a_gradient_norm_that_is_not_finite_comes_back(tmp_path: Path):
    _write(tmp_path / "m", [replace(step_record(1), grad_norm=math.nan), replace(step_record(2), grad_norm=math.inf)])
    first, second = latest_steps(read_metrics(tmp_path / "m").records)
    assert math.isnan(first.grad_norm)
    assert second.grad_norm == math.inf


@given(cut_bytes=st.integers(1, 200))
def test_a_torn_last_line_costs_only_itself(cut_bytes: int, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    _write(path, [step_record(1), step_record(2)])
    os.truncate(path, path.stat().st_size - cut_bytes)
    _write(path, [step_record(3)])
    metrics = read_metrics(path)
    only_the_newline_was_lost = cut_bytes == 1
    assert [record.step for record in metrics.records] == ([1, 2, 3] if only_the_newline_was_lost else [1, 3])
    assert metrics.num_torn_lines == (0 if only_the_newline_was_lost else 1)


def test_opening_a_whole_log_changes_no_byte(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    _write(path, records(blocked=False))
    before = path.read_bytes()
    _write(path, [])
    assert path.read_bytes() == before


def test_lines_of_another_version_are_counted_and_skipped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    _write(path, [step_record(1)])
    newer_line = json.loads(path.read_text()) | {"new_field": 1}
    path.write_text("\n".join(map(json.dumps, [newer_line, {"kind": "unheard_of", "time": 1.0}, 5, {"kind": "step"}])))
    metrics = read_metrics(path)
    assert metrics.records == [step_record(1)]
    assert metrics.num_torn_lines == 3


def test_of_steps_done_again_the_highest_attempt_counts():
    again = [step_record(step, attempt=1, loss=1.0) for step in (2, 3)]
    first = [step_record(step) for step in (1, 2, 3, 4)]
    assert latest_steps([*first, eval_record(4, "pretrain", 2.0), *again]) == [first[0], *again, first[3]]
    assert latest_steps([*again, *first]) == [first[0], *again, first[3]]


def test_a_reader_beside_the_writer_sees_every_record_once_and_none_in_part(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    written = [step_record(step) for step in range(2000)]
    writer = threading.Thread(target=lambda: [log.append(record) for record in written])
    reader = MetricsReader(path)
    seen: list[Record] = []
    writer.start()
    while writer.is_alive():
        news = reader.read_new()
        assert news.num_torn_lines == 0
        seen += news.records
    writer.join()
    seen += reader.read_new().records
    log.close()
    assert seen == written


def test_a_follower_leaves_a_half_written_line_for_later(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    _write(path, [step_record(1), step_record(2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    reader = MetricsReader(path)
    assert reader.read_new().records == [step_record(1)]
    path.write_bytes(whole)
    assert reader.read_new().records == [step_record(2)]
    assert reader.read_new().records == []


def test_a_full_disk_is_a_storage_error_that_names_the_file():
    log = MetricsLog(Path("/dev/full"))
    with pytest.raises(StorageError, match=r"/dev/full.*No space left"):
        log.append(step_record(1))


def test_a_missing_folder_is_a_storage_error_that_names_the_file(tmp_path: Path):
    with pytest.raises(StorageError, match=r"nowhere/metrics\.jsonl"):
        MetricsLog(tmp_path / "nowhere" / "metrics.jsonl")
    with pytest.raises(StorageError, match=r"nowhere/metrics\.jsonl"):
        read_metrics(tmp_path / "nowhere" / "metrics.jsonl")


def test_a_record_after_a_short_write_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append(step_record(1))
    real_write = os.write
    with monkeypatch.context() as patch:  # what write(2) does when the disk fills up in the middle of a line
        patch.setattr(os, "write", lambda fd, data: real_write(fd, data[:20]))
        with pytest.raises(StorageError, match="only 20 of"):
            log.append(step_record(2))
    log.append(step_record(3))
    log.close()
    metrics = read_metrics(path)
    assert metrics.records == [step_record(1), step_record(3)]
    assert metrics.num_torn_lines == 1


def test_a_log_that_is_a_link_is_refused(tmp_path: Path):
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / "metrics.jsonl").symlink_to("elsewhere")
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        MetricsLog(tmp_path / "metrics.jsonl")
    assert (tmp_path / "elsewhere").read_text() == "theirs"


@given(
    st.lists(st.tuples(st.sampled_from(["step", "incident", "gate"]), st.text(max_size=40)), max_size=30),
    st.integers(1, 200),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_last_record_of_a_kind_is_found_from_the_end_whatever_the_blocks_cut(
    written: list[tuple[str, str]], block_bytes: int, is_torn: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_BLOCK_BYTES", block_bytes)
        path = Path(folder) / "metrics.jsonl"
        assert last_record(path, "step") is None
        lines = [json.dumps({"kind": kind, "message": text}) for kind, text in written]
        path.write_text("".join(f"{line}\n" for line in lines) + ('{"kind": "step", "mess' if is_torn else ""))
        for kind in ("step", "incident", "gate", "checkpoint"):
            expected = next((text for found, text in reversed(written) if found == kind), None)
            record = last_record(path, kind)
            assert (record["message"] if record else None) == expected


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=30), st.integers(1, 2000), st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_the_last_steps_of_a_training_stage_are_the_latest_of_each_whatever_the_blocks_cut(
    written: list[tuple[int, bool]], block_bytes: int, most: int
) -> None:
    """Starts write steps from some step on; the stage under test has steps 5 to 10, and not each line is whole."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_BLOCK_BYTES", block_bytes)
        path = Path(folder) / "metrics.jsonl"
        assert last_steps(path, "here", range(5, 11), most=most) == []
        with path.open("wb") as file:
            for attempt, (first, is_torn) in enumerate(written):
                for step in range(first, 13):
                    stage = "before" if step < 5 else "here" if step < 11 else "after"
                    record = step_record(step, stage=stage, attempt=attempt)
                    file.write(metrics.to_line(record))
                file.write(b'{"kind": "step", "step\n' if is_torn else b"")
        steps = {record.step: record for record in read_metrics(path).records if isinstance(record, StepRecord)}
        expected = [steps[step] for step in range(5, 11)[-most:] if step in steps] if most else []
        assert last_steps(path, "here", range(5, 11), most=most) == expected
