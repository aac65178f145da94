"""What is asked of an endpoint, and the key under which the answer is kept."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One question."""

    body: Mapping[str, Any]
    """JSON object that is posted, the model's name among its values."""
    try_number: int = 0
    """0 for the first sample of a prompt, 1 for the second."""
    task: str = ""
    """Who asks; the bill names it. No part of the key."""
    max_output_tokens: int

    def key(self, url: str) -> str:
        """Return the SHA-256 of address, canonical body and try number: equal questions have equal keys."""
        return hashlib.sha256(canonical({"url": url, "body": self.body, "try": self.try_number}).encode()).hexdigest()

    @property
    def most_input_tokens(self) -> int:
        """Tokens of the question, no fewer than any byte-level tokenizer makes of it: the bytes of its texts.

        What a server adds without being asked, such as a system prompt of its own, is not in it.
        """
        return len(canonical(self.body.get("messages", self.body.get("prompt"))).encode())


def canonical(values: Any) -> str:
    """Return the one JSON text of values: names sorted, no spaces, numbers as Python writes them.

    Raises:
        ValueError: a number is not finite, or a value is no JSON.
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
