import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.shards import PreparedData
from training.data.tokenizer import EOS_TOKEN, Tokenizer
from training.errors import ConfigError, DataError

TEXTS = [f"The number {i} follows {i - 1};\n\tif x == {i}: return 'größer'\n" for i in range(300)]

TRAIN_AND_HASH = f"""
import hashlib
from training.data.tokenizer import Tokenizer
print(Tokenizer.train([t for t in {TEXTS!r}], 400).fingerprint)
"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(iter(TEXTS), 400)


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
    tokenizer: Tokenizer, threads: dict[str, str]
) -> None:
    environment = {**os.environ, **threads}
    command = [sys.executable, "-c", TRAIN_AND_HASH]
    result = subprocess.run(command, check=True, env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == tokenizer.fingerprint


def test_a_saved_tokenizer_loads_as_itself(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tokenizer.fingerprint
    loaded = Tokenizer.load(path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.vocab_size == tokenizer.vocab_size == 400
    assert loaded.encode(TEXTS[7]) == tokenizer.encode(TEXTS[7])


def test_a_vocabulary_without_room_for_all_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer_vocab_size=256.*\n.*257"):
        Tokenizer.train(TEXTS, 256)
    assert Tokenizer.train(TEXTS, 257).decode(Tokenizer.train(TEXTS, 257).encode("größer")) == "größer"


def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")
