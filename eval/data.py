"""What evaluation needs of prepared data; `training.data.shards.PreparedData` has it."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from training.config.eval_schema import SuiteConfig
from training.errors import DataError


class Tokenizer(Protocol):
    """Text to token ids and back, with the exact number of bytes behind each token."""

    @property
    def eos_id(self) -> int:
        """Token that separates documents, and so also stands before each one."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash that identifies it."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    def encode(self, text: str, /) -> Sequence[int]:
        """Return the token ids of a text, without any special token."""
        ...

    def decode(self, token_ids: Sequence[int], /) -> str:
        """Return the text of token ids."""
        ...

    def token_bytes(self, token_id: int, /) -> int:
        """Return how many UTF-8 bytes of text a token stands for; 0 for special tokens."""
        ...


class HeldOutDocument(Protocol):
    """One document that training never sees."""

    @property
    def id(self) -> str:
        """Name of the document, stable between preparations."""
        ...

    @property
    def token_ids(self) -> np.ndarray:
        """Its tokens, in one dimension."""
        ...


class EvalData(Protocol):
    """Tokenizer and held-out documents."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer the documents were split with."""
        ...

    def held_out_documents(self, source_name: str, /) -> Sequence[HeldOutDocument]:
        """Return the held-out documents of a source, in the source's own order."""
        ...


def suite_documents(data: EvalData, suite: SuiteConfig) -> list[HeldOutDocument]:
    """Return the documents a suite measures on: the first non-empty held-out ones of its source.

    Raises:
        DataError: the source has none.
    """
    assert suite.held_out_source is not None
    documents = [document for document in data.held_out_documents(suite.held_out_source) if len(document.token_ids)]
    if not documents:
        raise DataError(
            f"source {suite.held_out_source} has no held-out document: nothing can be evaluated on it\n"
            "  -> raise data.held_out_fraction and prepare the data again, or name another held_out_source in the suite"
        )
    return documents[: suite.held_out_documents]


def data_identity(data: EvalData, suite: SuiteConfig) -> str:
    """Return a SHA-256 of a suite's documents as this tokenizer splits them.

    Two results are comparable number by number only if their identities are equal.
    """
    digest = hashlib.sha256()
    digest.update(f"{data.tokenizer.vocab_size} {data.tokenizer.eos_id}\n".encode())
    for document in suite_documents(data, suite):
        digest.update(f"{document.id} {len(document.token_ids)}\n".encode())
        digest.update(np.ascontiguousarray(document.token_ids, dtype="<i8").tobytes())
    return digest.hexdigest()
