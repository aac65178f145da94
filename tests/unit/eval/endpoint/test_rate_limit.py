import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.endpoint.rate_limit import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def starts(limit: RateLimit, clock: Clock, requests: list[tuple[int, float]]) -> list[float]:
    """When each request starts, if the next one is made so long after it was."""
    found = []
    for tokens, later in requests:
        found.append(clock.now + limit.take(tokens))
        clock.now += later
    return found


requests = st.lists(st.tuples(st.integers(1, 500), st.floats(0, 5)), max_size=40)


@given(requests, st.integers(1, 90))
def test_no_minute_sees_more_requests_than_allowed(asked: list[tuple[int, float]], per_minute: int) -> None:
    clock = Clock()
    limit = RateLimit(requests_per_minute=per_minute, tokens_per_minute=None, clock=clock)
    found = starts(limit, clock, asked)
    for first in found:
        assert sum(first <= start < first + 60.0 - 1e-6 for start in found) <= per_minute


@given(requests)
def test_a_bucket_that_refills_as_fast_is_never_found_empty(asked: list[tuple[int, float]]) -> None:
    """The provider's: it holds a minute's tokens."""
    per_minute = 600.0
    clock = Clock()
    limit = RateLimit(requests_per_minute=None, tokens_per_minute=per_minute, clock=clock)
    level, last = per_minute, clock.now
    for (tokens, _), start in zip(asked, starts(limit, clock, asked), strict=True):
        level = min(per_minute, level + (start - last) * per_minute / 60) - tokens
        assert level >= -1e-6
        last = start


def test_without_limits_nothing_waits() -> None:
    clock = Clock()
    limit = RateLimit(requests_per_minute=None, tokens_per_minute=None, clock=clock)
    assert [limit.take(10**9) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_tokens_that_were_not_used_shorten_the_next_wait() -> None:
    clock = Clock()
    limit = RateLimit(requests_per_minute=None, tokens_per_minute=60.0, clock=clock)
    assert limit.take(30) == 0.0
    limit.give_back(20)
    assert limit.take(1) == pytest.approx(10.0)


def test_after_too_many_nobody_starts_until_the_server_wants_it() -> None:
    clock = Clock()
    limit = RateLimit(requests_per_minute=600.0, tokens_per_minute=None, clock=clock)
    limit.hold(7.0)
    limit.hold(2.0)
    waits = [limit.take(1) for _ in range(3)]
    assert waits == pytest.approx([7.0, 7.1, 7.2])
    assert all(later > earlier for earlier, later in itertools.pairwise(waits))
