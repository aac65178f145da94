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
        """Return the text of token ids, special tokens left out."""
        ...

    def spelled(self, token_ids: Sequence[int], /) -> str:
        """Return the text of token ids, special tokens by their names."""
        ...

    def token_bytes(self, token_id: int, /) -> int:
        """Return how many UTF-8 bytes of text a token stands for; 0 for special tokens."""
        ...


class HeldOutDocument(Protocol):
    """One document or conversation that training never sees."""

    @property
    def id(self) -> str:
        """Name of the document, stable between preparations."""
        ...

    @property
    def token_ids(self) -> np.ndarray:
        """Its tokens, in one dimension."""
        ...

    @property
    def is_target(self) -> np.ndarray:
        """bool, one a token: whether it is learned from in training; of conversations, what the assistant says."""
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


def suite_conversations(data: EvalData, suite: SuiteConfig) -> list[HeldOutDocument]:
    """Return the conversations a suite measures on: the first held-out ones of its source.

    Raises:
        DataError: in none of them the assistant says something within the tokens that are scored.
    """
    assert suite.conversation_source is not None
    held_out = data.held_out_documents(suite.conversation_source)
    found = [one for one in held_out if one.is_target[1 : suite.document_tokens].any()]
    if not found:
        raise DataError(
            f"source {suite.conversation_source} has {len(held_out)} held-out conversations, and in none of them the "
            f"assistant says something within {suite.document_tokens} tokens: nothing can be evaluated on it\n"
            "  -> raise the suite's document_tokens, or the source's held_out_fraction and prepare the data again"
        )
    return found[: suite.held_out_conversations]


def data_identity(data: EvalData, suite: SuiteConfig) -> str:
    """Return a SHA-256 of a suite's held-out records as this tokenizer splits them; empty if it measures none.

    Two results are comparable number by number only if their identities are equal.
    """
    records = suite_documents(data, suite) if suite.held_out_source is not None else []
    records += suite_conversations(data, suite) if suite.conversation_source is not None else []
    if not records:
        return ""
    digest = hashlib.sha256()
    digest.update(f"{data.tokenizer.vocab_size} {data.tokenizer.eos_id}\n".encode())
    for record in records:
        digest.update(f"{record.id} {len(record.token_ids)}\n".encode())
        digest.update(np.ascontiguousarray(record.token_ids, dtype="<i8").tobytes())
    return digest.hexdigest()
