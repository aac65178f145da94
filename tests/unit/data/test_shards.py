import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.config.data_schema import DataConfig
from training.data.corpus import is_held_out, read_documents
from training.data.shard_files import token_dtype
from training.data.shards import PreparedData
from training.errors import DataError, ExitCode


@pytest.fixture
def copied(prepared: PreparedData, small_data: DataConfig, tmp_path: Path) -> tuple[DataConfig, Path]:
    """A copy that a test may damage."""
    shutil.copytree(prepared.directory, tmp_path / prepared.directory.name)
    return replace(small_data, prepared_root=str(tmp_path)), tmp_path / prepared.directory.name


def whole(prepared: PreparedData, name: str) -> np.ndarray:
    stream = prepared.train(name)
    return stream.tokens(0, stream.num_tokens)


def split_at_eos(tokens: np.ndarray, eos_id: int) -> list[list[int]]:
    ends = np.flatnonzero(tokens == eos_id)
    assert ends[-1] == len(tokens) - 1
    return [part.tolist() for part in np.split(tokens, ends[:-1] + 1)]


def test_the_shards_hold_every_document_once_in_the_source_s_order(
    prepared: PreparedData, small_data: DataConfig
) -> None:
    tokenizer = prepared.tokenizer
    for name, source in small_data.sources.items():
        documents = list(read_documents(name, source))
        kept = [d for d in documents if not is_held_out(d.id, 0.2)]
        trained = split_at_eos(whole(prepared, name), tokenizer.eos_id)
        assert [tokenizer.decode(tokens) for tokens in trained] == [d.text for d in kept]
        held_out = prepared.held_out_documents(name)
        assert len(kept) + len(held_out) == len(documents)
        texts = {d.id: d.text for d in documents}
        assert [tokenizer.decode(d.token_ids.tolist()) for d in held_out] == [texts[d.id] for d in held_out]


def test_no_held_out_document_occurs_in_the_training_stream(prepared: PreparedData) -> None:
    stream = {name: whole(prepared, name).astype("<u2").tobytes() for name in ("bible", "code")}
    for name in stream:
        documents = prepared.held_out_documents(name)
        assert documents
        for document in documents:
            start = document.token_ids[:48].astype("<u2").tobytes()
            assert start not in stream["bible"]
            assert start not in stream["code"]


def test_the_manifest_counts_what_the_shards_hold(prepared: PreparedData) -> None:
    for name, entry in prepared.manifest.sources.items():
        source, tokens = prepared.train(name), whole(prepared, name)
        assert len(tokens) == source.num_tokens == entry.train.num_tokens
        assert source.starts(np.array([source.num_records])) == [len(tokens)]
        assert source.num_records == entry.train.num_records
        bytes_in_tokens = sum(prepared.tokenizer.token_bytes(int(i)) for i in tokens)
        assert bytes_in_tokens == entry.train.num_bytes
        assert tokens.max() < prepared.tokenizer.vocab_size


def test_a_changed_byte_in_any_file_is_found(copied: tuple[DataConfig, Path]) -> None:
    data, directory = copied
    PreparedData.open(data, verify=True).verify()
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) == 19  # with what the code's copies in quarantine.jsonl
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(DataError, match=path.name) as error:
            PreparedData.open(data, verify=True, prepare_command="python -m training.data prepare experiment=x")
        assert "run: python -m training.data prepare experiment=x" in str(error.value)
        assert error.value.exit_code == ExitCode.DATA
        path.write_bytes(content)


def test_a_truncated_or_missing_file_is_found_without_reading_it(copied: tuple[DataConfig, Path]) -> None:
    data, directory = copied
    shard = directory / "bible" / "train-00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    with pytest.raises(DataError, match=rf"bible/train-00000\.bin.*{len(content) - 2} bytes.*{len(content)}"):
        PreparedData.open(data)
    shard.unlink()
    with pytest.raises(DataError, match=r"bible/train-00000\.bin.*missing"):
        PreparedData.open(data)


def test_an_index_that_does_not_fit_is_found_even_without_hashes(copied: tuple[DataConfig, Path]) -> None:
    data, directory = copied
    path = directory / "bible" / "train-00000.index.npy"
    index = np.load(path)
    index[3] = index[-1] + 1
    np.save(path, index)
    with pytest.raises(DataError, match=r"train-00000\.index\.npy.*record starts"):
        PreparedData.open(data).train("bible").starts(np.array([0]))


def test_settings_that_were_not_prepared_are_missing_data(small_data: DataConfig) -> None:
    with pytest.raises(DataError, match=r"no prepared data.*\n.*run: python -m training\.data prepare"):
        PreparedData.open(replace(small_data, tokenizer_vocab_size=513))


def test_an_unknown_source_is_refused_with_the_known_ones(prepared: PreparedData) -> None:
    with pytest.raises(DataError, match=r"source prose .*\['bible', 'code'\]"):
        prepared.train("prose")


def test_the_fingerprint_names_the_content_not_the_place(
    prepared: PreparedData, copied: tuple[DataConfig, Path]
) -> None:
    assert PreparedData.open(copied[0]).fingerprint == prepared.fingerprint
    manifest = json.loads((copied[1] / "manifest.json").read_text())["manifest"]
    assert manifest["files"].keys() == {
        path.relative_to(copied[1]).as_posix() for path in copied[1].rglob("*.*") if path.name != "manifest.json"
    }


def test_token_ids_take_two_bytes_while_the_vocabulary_allows_it() -> None:
    assert [token_dtype(size).itemsize for size in (257, 65_536, 65_537)] == [2, 2, 4]
