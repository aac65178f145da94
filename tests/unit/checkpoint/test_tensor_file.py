import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from training.checkpoint.tensor_file import TensorFileReader, TensorFileWriter, TensorHeader
from training.errors import CorruptCheckpoint, StorageError

VALUES = np.arange(30, dtype=np.float32)
HEADERS = [TensorHeader(key="a", dtype="F32", shape=(4, 5)), TensorHeader(key="b@20", dtype="F32", shape=(10,))]


def write(path: Path) -> TensorFileWriter:
    with TensorFileWriter(path, HEADERS, {"made": "by a test"}) as writer:
        writer.write(memoryview(VALUES[:7]))
        writer.write(memoryview(VALUES[7:]))
    return writer


def test_the_library_reads_what_was_streamed_and_the_hash_is_the_files(tmp_path: Path) -> None:
    writer = write(tmp_path / "file")
    with safe_open(tmp_path / "file", framework="np") as file:
        assert np.array_equal(file.get_tensor("a"), VALUES[:20].reshape(4, 5))
        assert np.array_equal(file.get_tensor("b@20"), VALUES[20:])
        assert file.metadata() == {"made": "by a test"}
    content = (tmp_path / "file").read_bytes()
    assert writer.file.sha256 == hashlib.sha256(content).hexdigest()
    assert writer.file.num_bytes == len(content)


@given(data=st.data())
def test_any_range_is_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("ranges") / "file"
    write(path)
    key, whole = data.draw(st.sampled_from([("a", VALUES[:20]), ("b@20", VALUES[20:])]))
    start = data.draw(st.integers(0, len(whole)))
    found = np.zeros(data.draw(st.integers(0, len(whole) - start)), dtype=np.float32)
    reader = TensorFileReader(path)
    reader.read_into(key, start, memoryview(found))
    reader.close()
    assert np.array_equal(found, whole[start : start + len(found)])


def test_a_file_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path / "file")
    with pytest.raises(FileExistsError):
        write(tmp_path / "file")


def test_too_little_data_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="28 of 120 bytes"), TensorFileWriter(tmp_path / "file", HEADERS) as writer:
        writer.write(memoryview(VALUES[:7]))


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


F32 = {"dtype": "F32", "shape": [2]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (6).to_bytes(8, "little") + b"\x80\x04nope",
        header({"a": {**F32, "data_offsets": [0, 8]}}),
        header({"a": {**F32, "data_offsets": [0, 8]}}) + bytes(9),
        header({"a": {**F32, "data_offsets": [4, 12]}}) + bytes(12),
        header({"a": {**F32, "data_offsets": [0, 8]}, "b": {**F32, "data_offsets": [4, 12]}}) + bytes(12),
        header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "OBJECT", "shape": [2], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}) + bytes(8),
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
    ids=[
        *("empty", "short", "header bomb", "a list", "no text", "no data", "too much data", "hole", "overlap"),
        *("negative size", "unknown dtype", "huge shape", "deeply nested"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="not a safetensors file"):
        TensorFileReader(tmp_path / "file")
