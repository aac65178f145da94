"""What is known of an endpoint, checked as soon as it is read. The key of the API is no part of it."""

import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from training.config.secret_names import has_password
from training.errors import ConfigError


class Api(StrEnum):
    """Which of the two OpenAI-compatible interfaces is asked."""

    chat = "chat"
    """POST {base_url}/chat/completions: messages in, a message out. No log-probability of a given text."""
    completions = "completions"
    """POST {base_url}/completions: text in, text out; scores a given text where the server has echo and logprobs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig:
    """An endpoint, its prices and its limits.

    Raises:
        ConfigError: a value cannot be.
    """

    base_url: str
    """Up to and with the version, such as https://api.partner.example/v1."""
    model: str
    """Name of the model at the endpoint."""
    journal: Path
    """File of everything sent and answered; one process at a time."""
    api: Api = Api.chat
    key_env: str | None = None
    """Environment variable that holds the API key; null: none is sent."""
    allow_http: bool = False
    """Whether http:// is allowed beyond this machine, where anyone on the way reads prompts, answers and the key."""
    offline: bool = False
    """Whether every answer must be in the journal; no connection is opened."""
    price_per_million_input_tokens: float | None = None
    price_per_million_output_tokens: float | None = None
    """In any one currency; both or neither."""
    max_cost: float | None = None
    """Most money that the journal may ever cost, in that currency."""
    max_tokens_total: int | None = None
    """Most tokens, in and out, that the journal may ever hold."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Limits the provider has set; null: none."""
    concurrency: int = 4
    """Requests under way at a time."""
    timeout_seconds: float = 300.0
    """Longest wait for one answer."""
    max_retries: int = 8
    """How often a request is sent again that had no answer."""
    backoff_seconds: float = 1.0
    """First wait before that, at most; doubled each time."""
    max_wait_seconds: float = 120.0
    """Longest wait, also where the server asks for it (Retry-After)."""
    max_output_tokens: int = 256
    """Of an answer, where the task does not say."""
    max_tokens_field: str = "max_tokens"
    """Name of the field that says so; newer OpenAI models want max_completion_tokens."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields put into every request, such as reasoning_effort; a null leaves one out, such as seed."""
    seed: int = 1234
    """Sent with every request; the n-th sample of one prompt has seed + n."""
    prefix_text: str = ""
    """Text before a document or an answer that has no context, such as <|endoftext|>, so that its first token can be
    scored. completions only."""
    multiple_choice_by_letter: bool = False
    """Whether chat endpoints answer multiple choice by naming a letter. Another measurement than log-likelihoods:
    compare it only with a model that was asked in the same way."""

    def __post_init__(self) -> None:
        """Check every value."""
        self._check_address()
        for name in ("model", "max_tokens_field"):
            if not getattr(self, name).strip():
                raise ConfigError(name, repr(getattr(self, name)), "is empty", "write the name the provider gives")
        self._check_numbers()
        if (self.price_per_million_input_tokens is None) != (self.price_per_million_output_tokens is None):
            raise ConfigError(
                "price_per_million_output_tokens",
                self.price_per_million_output_tokens,
                f"price_per_million_input_tokens is {self.price_per_million_input_tokens}: a cost needs both prices",
                "give both (0 where it is free), or neither",
            )
        if self.max_cost is not None and self.price_per_million_input_tokens is None:
            raise ConfigError(
                "max_cost",
                self.max_cost,
                "no price is known, so no cost can be",
                "give price_per_million_input_tokens and price_per_million_output_tokens, or limit max_tokens_total",
            )
        if self.prefix_text and self.api is Api.chat:
            raise ConfigError(
                "prefix_text",
                repr(self.prefix_text),
                "chat endpoints score no text",
                "leave it out, or api=completions",
            )
        if self.multiple_choice_by_letter and self.api is Api.completions:
            raise ConfigError(
                "multiple_choice_by_letter",
                True,
                "completions scores the answers themselves",
                "leave it out, or api=chat",
            )

    @property
    def url(self) -> str:
        """Address that is asked."""
        return f"{self.base_url.rstrip('/')}/{'chat/completions' if self.api is Api.chat else 'completions'}"

    @property
    def is_loopback(self) -> bool:
        """Whether the endpoint is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def key(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """Return the API key; None if none is sent.

        Raises:
            ConfigError: the variable that should hold it does not, or no header can carry what it holds.
        """
        if self.key_env is None:
            return None
        value = environment.get(self.key_env, "").strip()
        if not value:
            reason = "no such environment variable is set"
            raise ConfigError("key_env", self.key_env, reason, f"export {self.key_env}=… in the shell that starts this")
        if not value.isascii() or not value.isprintable():
            raise ConfigError("key_env", self.key_env, "its value has characters that no key has", "set it again")
        return value

    def _check_address(self) -> None:
        if has_password(self.base_url):
            remedy = "leave user:…@ out; put the key into an environment variable and name it in key_env"
            raise ConfigError("base_url", "(hidden)", "has a password in it, and a config is written down", remedy)
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            remedy = "https://HOST/v1, up to and with the version"
            raise ConfigError("base_url", self.base_url, "is no address of an endpoint", remedy)
        if parts.scheme == "http" and not (self.is_loopback or self.allow_http):
            reason = "http is not encrypted: prompts, answers and the key can be read on the way"
            raise ConfigError(
                "base_url", self.base_url, reason, "https://…, or allow_http=true within your own network"
            )

    def _check_numbers(self) -> None:
        at_least = {"concurrency": 1, "max_output_tokens": 1, "max_retries": 0, "seed": 0}
        zero_allowed = {"price_per_million_input_tokens", "price_per_million_output_tokens", "max_cost"}
        for name in (declared.name for declared in fields(self)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                raise ConfigError(name, value, "is not a finite number", "write a number")
            if name in at_least:
                if value < at_least[name]:
                    raise ConfigError(
                        name, value, f"must be at least {at_least[name]}", f"{name}={at_least[name]} works"
                    )
            elif value < 0 or (value == 0 and name not in zero_allowed):
                remedy = "write the number itself, or null for no limit"
                raise ConfigError(name, value, "must be above 0" if name not in zero_allowed else "is below 0", remedy)
