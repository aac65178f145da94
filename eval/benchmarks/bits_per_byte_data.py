"""Whole texts of one domain each, for bits per byte: code and prose that training keeps out."""

from typing import Any

from eval.benchmarks.local_text import held_out_documents
from training.config.data_schema import SourceKind

_LARGEST_BYTES = 8_192
"""Of a text: the start of a longer document, up to the end of a line. So no document outweighs all others."""


def rolling_items(kind: SourceKind) -> list[dict[str, Any]]:
    """Return the held-out documents of an embedded source."""
    items = ({"id": document.id, "text": _start(document.text)} for document in held_out_documents(kind))
    return [item for item in items if item["text"].strip()]


def _start(text: str) -> str:
    content = text.encode()
    if len(content) <= _LARGEST_BYTES:
        return text
    # Without a line's end in it, nothing remains, and the caller leaves the text out.
    return content[: content.rfind(b"\n", 0, _LARGEST_BYTES) + 1].decode()
