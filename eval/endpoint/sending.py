"""One attempt over HTTP: a request in, an answer or the reason why there is none out. Never the API key."""

import email.utils
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from eval.endpoint.config import EndpointConfig
from training.plain_files import parse_json

_LARGEST_ANSWER_BYTES = 2**26
_SHOWN_CHARACTERS = 500
_CONNECT_SECONDS = 30.0
_AGAIN = frozenset({408, 409, 425, 429})
"""Client errors (4xx) that pass by themselves."""
_GATEWAY = frozenset({502, 504})
"""A gateway says that the server behind it failed or was late (RFC 9110, 15.6.3 and 15.6.5): its work may be billed."""
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
_NO_MONEY = "insufficient_quota"
"""Code of a 429 that no waiting helps against (OpenAI's error codes)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why there is no answer."""

    reason: str
    """In the server's words where it gave any."""
    may_be_billed: bool
    """Whether the server may have done the work all the same."""
    is_final: bool
    """Whether the same request would only be refused again."""
    retry_after_seconds: float | None = None
    """What the server asked for."""
    too_many: bool = False
    """Whether it was one request too many: all have to wait."""


class Sender:
    """Posts to one endpoint; any number of threads at a time. A context manager.

    Args:
        config: of the endpoint.
        key: of the API, or None.
        clock: seconds, never going back; limits how long an answer may take.
    """

    def __init__(self, config: EndpointConfig, key: str | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._seconds, self._clock = config.url, config.timeout_seconds, clock
        self._without_key: Callable[[str], str] = lambda text: text.replace(key, "(the API key)") if key else text
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=httpx.Timeout(self._seconds, connect=min(_CONNECT_SECONDS, self._seconds)),
            limits=httpx.Limits(max_connections=config.concurrency),
            follow_redirects=False,  # the key goes to no other host
            trust_env=not config.is_loopback,  # a proxy of the organisation does not reach this machine's loopback
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self._http.close()

    def post(self, body: Mapping[str, Any]) -> Mapping[str, Any] | Refusal:
        """Return the JSON object that the server answers with, or why there is none."""
        deadline = self._clock() + self._seconds
        try:
            with self._http.stream("POST", self._url, json=body) as response:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > _LARGEST_ANSWER_BYTES:
                        return self._refusal("the answer is longer than 64 MiB", may_be_billed=True, is_final=True)
                    if self._clock() > deadline:  # a server may go on byte by byte
                        raise httpx.ReadTimeout("the answer was not complete in time")
        except _NEVER_SENT as error:
            return self._refusal(f"no connection: {_words(error)}", may_be_billed=False, is_final=False)
        except httpx.TimeoutException as error:
            reason = f"no answer within {self._seconds:g} seconds ({_words(error)})"
            return self._refusal(reason, may_be_billed=True, is_final=False)
        except (httpx.TransportError, httpx.DecodingError) as error:
            return self._refusal(f"the connection broke: {_words(error)}", may_be_billed=True, is_final=False)
        return self._judged(response, bytes(content))

    def _judged(self, response: httpx.Response, content: bytes) -> Mapping[str, Any] | Refusal:
        status = response.status_code
        if status == httpx.codes.OK:
            try:
                values = parse_json(content, strict=True)
            except ValueError as error:
                return self._refusal(f"status 200 without JSON: {error}", may_be_billed=True, is_final=False)
            if isinstance(values, dict) and isinstance(values.get("choices"), list) and values["choices"]:
                return values
            words = f"status 200 without an answer: {_shown(content)}"
            return self._refusal(words, may_be_billed=True, is_final=False)
        reason = f"status {status} {response.reason_phrase}: {_shown(content)}"
        if status >= 500 or status in _AGAIN:
            return self._refusal(
                reason,
                may_be_billed=status in _GATEWAY,
                is_final=_NO_MONEY in reason,
                retry_after_seconds=retry_after_seconds(response.headers.get("retry-after"), now=time.time()),
                too_many=status == httpx.codes.TOO_MANY_REQUESTS,
            )
        return self._refusal(reason, may_be_billed=False, is_final=True)

    def _refusal(self, reason: str, **facts: Any) -> Refusal:
        """Return a refusal; a server that repeats the key does not bring it into a file."""
        return Refusal(reason=self._without_key(reason), **facts)


def retry_after_seconds(value: str | None, *, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3), at least 0; None if it is none.

    Args:
        value: a number of seconds, or an HTTP date.
        now: seconds since 1970.
    """
    if value is None:
        return None
    try:
        # Whole seconds by the RFC; servers write fractions too. NaN and infinity are caught by the comparison.
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _shown(content: bytes) -> str:
    text = " ".join(content.decode("utf-8", errors="replace").split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
