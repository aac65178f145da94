import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from tests.real_weights import SMOLLM2
from training.data.shards import PreparedData
from training.data.tokenizer import EOS_TOKEN, Tokenizer, train_tokenizer
from training.errors import ConfigError, DataError

TEXTS = [f"The number {i} follows {i - 1};\n\tif x == {i}: return 'größer'\n" for i in range(300)]

TRAIN_AND_HASH = f"""
import sys
from pathlib import Path
from training.data.tokenizer import Tokenizer, train_tokenizer
train_tokenizer(Path(sys.argv[1]), {TEXTS!r}, 400)
print(Tokenizer.load(Path(sys.argv[1])).fingerprint)
"""


BYTES_WITHOUT_TOKEN = {4, 6, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}
"""In SmolLM2's vocabulary, counted once from its tokenizer.json."""


def trained(directory: Path, vocab_size: int) -> Tokenizer:
    train_tokenizer(directory, iter(TEXTS), vocab_size)
    return Tokenizer.load(directory)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return trained(tmp_path_factory.mktemp("tokenizer"), 400)


@given(st.text())
def test_any_text_comes_back_and_its_tokens_bytes_add_up(prepared: PreparedData, text: str) -> None:
    tokenizer = prepared.tokenizer
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.token_bytes(i) for i in ids) == len(text.encode())
    assert tokenizer.encode_batch([text, text]) == [ids, ids]
    assert tokenizer.decode_batch([ids, [*ids, tokenizer.eos_id]]) == [text, text]


@given(st.text(), st.text())
def test_the_characters_of_the_end_of_text_token_are_ordinary_text(tokenizer: Tokenizer, a: str, b: str) -> None:
    text = a + EOS_TOKEN + b
    ids = tokenizer.encode(text)
    assert tokenizer.eos_id not in ids
    assert tokenizer.encode_batch([text]) == [ids]
    assert tokenizer.decode(ids) == text


def test_the_end_of_text_token_is_0_and_stands_for_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id == 0
    assert tokenizer.token_bytes(0) == 0
    assert all(tokenizer.token_bytes(i) >= 1 for i in range(1, tokenizer.vocab_size))
    assert tokenizer.decode([0]) == ""


@pytest.mark.parametrize(
    "threads",
    [{"RAYON_NUM_THREADS": "1"}, {"RAYON_NUM_THREADS": "4"}, {"TOKENIZERS_PARALLELISM": "false"}],
)
def test_another_process_with_other_threads_trains_the_same_tokenizer(
    tokenizer: Tokenizer, threads: dict[str, str], tmp_path: Path
) -> None:
    environment = {**os.environ, **threads}
    command = [sys.executable, "-c", TRAIN_AND_HASH, str(tmp_path)]
    result = subprocess.run(command, check=True, env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == tokenizer.fingerprint


def test_its_fingerprint_is_the_hash_of_its_file(tokenizer: Tokenizer) -> None:
    content = (tokenizer.directory / "tokenizer.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == tokenizer.fingerprint
    assert tokenizer.vocab_size == 400


def test_a_vocabulary_without_room_for_all_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer_vocab_size=256.*\n.*257"):
        train_tokenizer(tmp_path, TEXTS, 256)
    with pytest.raises(ConfigError, match=r"tokenizer_vocab_size=258.*3 special tokens.*\n.*259"):
        train_tokenizer(tmp_path, TEXTS, 258, special_tokens=["<|im_start|>", "<|im_end|>"])
    smallest = trained(tmp_path, 257)
    assert smallest.decode(smallest.encode("größer")) == "größer"


def test_a_directory_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=tmp_path.name):
        Tokenizer.load(tmp_path)


@given(
    st.text()
    | st.sampled_from(
        ["<|im_start|>user<|im_end|>", "a  b\r\n\tc", "<|endoftext|>", "\u200d\U0001f9d1", "\x04", "\U00040000"]
    )
)
def test_any_text_comes_back_from_a_real_model_s_tokenizer(text: str) -> None:
    real = real_tokenizer()
    ids = real.encode(text)
    [document] = real.encode_documents([text])
    assert document.tolist() == [*ids, real.eos_id]
    lost = real.num_bytes_lost(document, len(text.encode()))
    assert lost == sum(byte in BYTES_WITHOUT_TOKEN for byte in text.encode())
    assert sum(real.token_bytes(i) for i in ids) == len(text.encode()) - lost
    assert (real.decode(ids) == text) == (lost == 0)


@cache
def real_tokenizer() -> Tokenizer:
    return Tokenizer.load(SMOLLM2)


def test_the_token_that_ends_documents_is_the_wanted_one_or_the_usual_one() -> None:
    assert (real_tokenizer().end_of_document_token, real_tokenizer().vocab_size) == ("<|endoftext|>", 49_152)
    assert Tokenizer.load(SMOLLM2, "<|im_end|>").eos_id == 2
    with pytest.raises(ConfigError, match=r"end_of_document_token=<eos>.*\n.*<\|im_end\|>"):
        Tokenizer.load(SMOLLM2, "<eos>")


def test_without_the_usual_token_the_eos_token_ends_documents_and_without_one_it_has_to_be_named(
    tmp_path: Path,
) -> None:
    made = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "word": 1, "##s": 2, "[SEP]": 3}, unk_token="[UNK]"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"data\.end_of_document_token=None.*neither"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[SEP]"}')
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.end_of_document_token, loaded.eos_id, loaded.vocab_size) == ("[SEP]", 3, 4)
    with pytest.raises(DataError, match="bits per byte cannot be measured"):
        loaded.token_bytes(1)


def test_an_id_that_no_vocabulary_has_is_refused_before_a_table_of_its_size_is_made(tmp_path: Path) -> None:
    vocabulary = {"version": "1.0", "model": {"type": "BPE", "merges": [], "vocab": {EOS_TOKEN: 4294967295}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(DataError, match="4294967295"):
        Tokenizer.load(tmp_path)
