"""When the next request may be sent. Pure but for the clock, which is given."""

import threading
from collections.abc import Callable

_MINUTE_SECONDS = 60.0


class RateLimit:
    """Spreads requests and their tokens evenly over the minutes.

    It is a token bucket that holds one request (the generic cell rate algorithm, ITU-T I.371): no 60 seconds see more
    requests than allowed, and a bucket of a provider that refills at the same rate is never found empty. Bursts would
    be refused by providers that count by the second.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit.
        clock: seconds, never going back.
    """

    def __init__(
        self, *, requests_per_minute: float | None, tokens_per_minute: float | None, clock: Callable[[], float]
    ) -> None:
        self._seconds_per_request = _MINUTE_SECONDS / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = _MINUTE_SECONDS / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._next_by_requests = self._next_by_tokens = self._held_until = clock()

    def take(self, tokens: int) -> float:
        """Return how many seconds to wait before a request of at most so many tokens is sent; its turn is taken."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next_by_requests, self._next_by_tokens, self._held_until)
            self._next_by_requests = start + self._seconds_per_request
            self._next_by_tokens = start + tokens * self._seconds_per_token
            return start - now

    def give_back(self, tokens: int) -> None:
        """Let those that come later have tokens that were taken and not used (or, below 0, make them wait for more)."""
        with self._lock:
            self._next_by_tokens -= tokens * self._seconds_per_token

    def hold(self, seconds: float) -> None:
        """Let no request start for so long: the server said that it has had too many."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)
