"""Byte-level BPE: every text has tokens, every token stands for an exact number of bytes.

Special tokens are never made from text: a document that holds the characters of "<|endoftext|>" is encoded as those
characters, so only the end of a document ends a document.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from training.errors import ConfigError, DataError
from training.plain_files import read_text

EOS_TOKEN = "<|endoftext|>"
SMALLEST_VOCAB_SIZE = 257
"""256 bytes and the end-of-text token."""


class Tokenizer:
    """A trained tokenizer, identified by the sha256 of its tokenizer.json."""

    def __init__(self, json_text: str) -> None:
        self._json_text = json_text
        self._tokenizer = tokenizers.Tokenizer.from_str(json_text)
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.fingerprint = hashlib.sha256(json_text.encode()).hexdigest()
        eos_id = self._tokenizer.token_to_id(EOS_TOKEN)
        if eos_id is None:
            raise DataError(f"tokenizer.json has no token {EOS_TOKEN}\n  -> prepare the data again")
        if eos_id >= self.vocab_size:
            raise DataError(f"tokenizer.json gives {EOS_TOKEN} id {eos_id} of {self.vocab_size}\n  -> prepare again")
        self.eos_id: int = eos_id
        # The byte-level alphabet writes each byte as one character, so a token's characters count its bytes.
        self._token_bytes = [len(self._tokenizer.id_to_token(i) or "") for i in range(self.vocab_size)]
        for special_id in self._tokenizer.get_added_tokens_decoder():
            self._token_bytes[special_id] = 0

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Return a tokenizer trained on `texts`; the same texts give the same tokenizer on any number of threads.

        Args:
            texts: training documents.
            vocab_size: tokens wanted; a small corpus gives fewer.

        Raises:
            ConfigError: vocab_size has no room for all bytes and the end-of-text token.
        """
        if vocab_size < SMALLEST_VOCAB_SIZE:
            raise ConfigError(
                "data.tokenizer_vocab_size",
                vocab_size,
                "256 bytes and the end-of-text token need a place each",
                f"data.tokenizer_vocab_size={SMALLEST_VOCAB_SIZE} is the smallest",
            )
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOS_TOKEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str(pretty=True))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the tokenizer of a tokenizer.json.

        Raises:
            DataError: the file is not one.
        """
        try:
            return cls(read_text(path))
        except BaseException as error:  # tokenizers raises nothing narrower for a file it cannot parse
            # A panic of its Rust code is no Exception, and its class cannot be imported.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise DataError(f"{path} cannot be read: {error}\n  -> prepare the data again") from error

    def save(self, path: Path) -> None:
        """Write tokenizer.json; its sha256 is `fingerprint`."""
        path.write_text(self._json_text, encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without an end-of-text token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of many texts, faster than one by one."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids, special tokens left out; bytes that are no UTF-8 show as U+FFFD."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def decode_batch(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of many lists of token ids, faster than one by one."""
        return self._tokenizer.decode_batch([list(ids) for ids in token_ids], skip_special_tokens=True)

    def token_bytes(self, token_id: int) -> int:
        """Return the exact number of UTF-8 bytes a token stands for; 0 for special tokens."""
        return self._token_bytes[token_id]
