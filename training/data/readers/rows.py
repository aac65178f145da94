"""A row of a source as it was read: a text, fields, or why it is neither."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_SAMPLE_CHARACTERS = 200


class Reason(StrEnum):
    """Why a record cannot be used; the word that the manifest counts by."""

    invalid_utf8 = "invalid UTF-8"
    bad_json = "bad JSON"
    bad_field = "bad field"
    bad_record = "bad record"
    unencodable = "unencodable"
    empty = "empty"
    oversized = "oversized"
    repeated_id = "repeated id"
    duplicate = "duplicate"
    near_duplicate = "near duplicate"
    contaminated = "contaminated"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Why a record cannot be used."""

    reason: Reason
    detail: str = ""
    """What about it, in a few words."""
    sample: str = ""
    """How it begins, for people; at most 200 characters."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a source as its file has it."""

    place: str
    """Kind, file and row: the record's id where it brings none of its own."""
    content: str | Mapping[str, Any] | Fault | None
    """A text, named fields, or why neither could be read; None where a row holds no record, as a blank line does."""


def sample_of(value: str | bytes) -> str:
    """Return how a value begins, at most 200 characters; bytes that are no UTF-8 show as U+FFFD."""
    if isinstance(value, str):  # a lone surrogate has no UTF-8 form
        value = value[:_SAMPLE_CHARACTERS].encode("utf-8", "replace")
    return value[: 4 * _SAMPLE_CHARACTERS].decode("utf-8", "replace")[:_SAMPLE_CHARACTERS]


def text_or_fault(content: bytes) -> str | Fault:
    """Return the text of bytes, or that they are no UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault(reason=Reason.invalid_utf8, detail=f"at byte {error.start:,}", sample=sample_of(content))


def oversized(num_bytes: int, largest_bytes: int, beginning: str | bytes) -> Fault:
    """Return that a record is too large."""
    detail = f"{num_bytes:,} bytes or more, data.sources.*.max_record_bytes={largest_bytes}"
    return Fault(reason=Reason.oversized, detail=detail, sample=sample_of(beginning))
