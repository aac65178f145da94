"""The tokenizer of prepared data: a Hugging Face directory's, or a byte-level BPE trained on the training documents.

Special tokens are never made from text: a document that holds the characters of "<|endoftext|>" is encoded as those
characters, so only the end of a document ends a document. (Conversations: `chat.py`.)
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from training.data.tokenizer_directory import SETTINGS_FILE, TEMPLATE_FILE, TOKENIZER_FILE, TokenizerDirectory
from training.errors import ConfigError, DataError

EOS_TOKEN = "<|endoftext|>"
SMALLEST_VOCAB_SIZE = 257
"""256 bytes and the end-of-text token."""
TOKENIZER_FILES = (TOKENIZER_FILE, SETTINGS_FILE, TEMPLATE_FILE)
"""What of a directory belongs to the tokenizer."""
_LARGEST_VOCAB_SIZE = 2**24
"""Of any tokenizer; a file that says more is damaged, and a table of its tokens might not fit the memory."""


class Tokenizer:
    """A tokenizer, identified by the sha256 of its tokenizer.json.

    Args:
        read: its directory.
        end_of_document_token: None takes <|endoftext|> where the tokenizer has it, else its eos_token.

    Raises:
        ConfigError: it has no such token.
        DataError: a token's id cannot be.
    """

    def __init__(self, read: TokenizerDirectory, end_of_document_token: str | None = None) -> None:
        self._tokenizer = read.tokenizer
        self._tokenizer.encode_special_tokens = True
        self.fingerprint = read.fingerprint
        self.directory = read.directory
        """Where its files are."""
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        """Every id is smaller."""
        if self.vocab_size > _LARGEST_VOCAB_SIZE:
            raise DataError(f"{read.directory}: a token has id {self.vocab_size - 1}\n  -> prepare the data again")
        self.end_of_document_token, self.eos_id = _end_of_document(read, end_of_document_token)
        """Text and id of the token that ends each document and stands before the next."""
        description = json.loads(self._tokenizer.to_str())
        self._bytes_of_tokens = (
            _bytes_of_tokens(self._tokenizer, self.vocab_size) if _is_byte_level(description) else None
        )
        self._keeps_bytes = self._bytes_of_tokens is not None and description.get("normalizer") is None

    @classmethod
    def load(cls, directory: Path, end_of_document_token: str | None = None) -> Self:
        """Return the tokenizer of a directory.

        Raises:
            ConfigError: it has no such token.
            DataError: there is none that can be read.
        """
        return cls(TokenizerDirectory.read(directory), end_of_document_token)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without an end-of-document token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of many texts, faster than one by one."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids of many documents, uint32, each with its end-of-document token."""
        documents = []
        for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            ids = encoding.ids
            ids.append(self.eos_id)
            documents.append(np.array(ids, dtype=np.uint32))
        return documents

    def num_bytes_lost(self, token_ids: np.ndarray, num_bytes: int) -> int:
        """Return how many bytes of a text have no token; 0 where the tokenizer cannot tell.

        A byte-level vocabulary need not have all bytes: SmolLM2's lacks 21, of control characters and unassigned planes
        of Unicode, and leaves them out without a word.

        Args:
            token_ids: of the text.
            num_bytes: of the text in UTF-8.
        """
        if self._bytes_of_tokens is None or not self._keeps_bytes:
            return 0
        return num_bytes - int(self._bytes_of_tokens[token_ids].sum())

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids, special tokens left out; bytes that are no UTF-8 show as U+FFFD."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def decode_batch(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of many lists of token ids, faster than one by one."""
        return self._tokenizer.decode_batch([list(ids) for ids in token_ids], skip_special_tokens=True)

    def spelled(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids, special tokens by their names."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> int:
        """Return the exact number of UTF-8 bytes a token stands for; 0 for special tokens.

        Raises:
            DataError: the tokenizer is not byte-level, so that a token alone stands for no number of bytes.
        """
        if self._bytes_of_tokens is None:
            raise DataError(
                f"bits per byte cannot be measured with the tokenizer of {self.directory}: it is not byte-level, so "
                "its tokens stand for no exact number of bytes\n"
                "  -> set data.tokenizer to a byte-level one, or measure benchmarks only, with a suite that has no "
                "held_out_source"
            )
        return int(self._bytes_of_tokens[token_id])


def train_tokenizer(
    directory: Path, texts: Iterable[str], vocab_size: int, *, special_tokens: Sequence[str] = ()
) -> None:
    """Write a byte-level BPE trained on `texts`; the same texts give the same files on any number of threads.

    Args:
        directory: where its files go; made if it is not there.
        texts: training documents.
        vocab_size: tokens wanted; a small corpus gives fewer.
        special_tokens: beside the end-of-text token, which has id 0; they have the next ids.

    Raises:
        ConfigError: vocab_size has no room for all bytes and the special tokens.
    """
    smallest = SMALLEST_VOCAB_SIZE + len(special_tokens)
    if vocab_size < smallest:
        special = f"{len(special_tokens) + 1} special tokens" if special_tokens else "the end-of-text token"
        raise ConfigError(
            "data.tokenizer_vocab_size",
            vocab_size,
            f"256 bytes and {special} need a place each",
            f"data.tokenizer_vocab_size={smallest} is the smallest",
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def _end_of_document(read: TokenizerDirectory, wanted: str | None) -> tuple[str, int]:
    tokenizer, key = read.tokenizer, "data.end_of_document_token"
    if wanted is not None:
        if (token_id := tokenizer.token_to_id(wanted)) is not None:
            return wanted, token_id
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        there = ", ".join(special) or "none"
        raise ConfigError(key, wanted, f"{read.directory} has no such token", f"its special tokens are: {there}")
    for token in (EOS_TOKEN, read.named_tokens.get("eos_token")):
        if token is not None and (token_id := tokenizer.token_to_id(token)) is not None:
            return token, token_id
    reason = f"{read.directory} has neither {EOS_TOKEN} nor an eos_token"
    raise ConfigError(key, None, reason, f"{key}=TOKEN, one of the tokenizer's own")


def _bytes_of_tokens(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> np.ndarray:
    """Return how many bytes each token of a byte-level tokenizer stands for, int64."""
    # The byte-level alphabet writes each byte as one character, so a token's characters count its bytes.
    num_bytes = np.array([len(tokenizer.id_to_token(token_id) or "") for token_id in range(vocab_size)])
    for token_id, token in tokenizer.get_added_tokens_decoder().items():
        num_bytes[token_id] = 0 if token.special else len(token.content.encode())
    return num_bytes


def _is_byte_level(description: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json's words become bytes before they become tokens, and nothing is added to them."""
    parts = [description.get("pre_tokenizer") or {}, description.get("decoder") or {}]
    steps = [[part, *part.get("pretokenizers", []), *part.get("decoders", [])] for part in parts]
    splits = [step for step in steps[0] if step.get("type") == "ByteLevel"]
    return (
        bool(splits)
        and not any(step.get("add_prefix_space") for step in splits)
        and any(step.get("type") == "ByteLevel" for step in steps[1])
        and not (description.get("model") or {}).get("byte_fallback")
    )
