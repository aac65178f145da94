import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.endpoint.budget import Budget, BudgetSpent, Prices

tokens = st.tuples(st.integers(0, 1000), st.integers(0, 1000))


def test_a_cost_is_per_million() -> None:
    assert Prices(per_million_input_tokens=2.0, per_million_output_tokens=8.0).cost(500_000, 250_000) == 3.0


@given(st.lists(st.tuples(tokens, st.floats(0, 1))), st.integers(0, 5000))
def test_no_sequence_of_requests_exceeds_the_limit(requests: list[tuple[tuple[int, int], float]], limit: int) -> None:
    """Whatever part of what it may take each one takes."""
    budget = Budget(prices=None, max_cost=None, max_tokens=limit)
    for most, share in requests:
        try:
            budget.promise(*most)
        except BudgetSpent:
            assert sum(budget.spent) + sum(most) > limit
            continue
        budget.settle(most, (int(most[0] * share), int(most[1] * share)))
        assert sum(budget.spent) <= limit


def test_the_refusal_says_what_is_left_and_that_nothing_is_lost() -> None:
    prices = Prices(per_million_input_tokens=10.0, per_million_output_tokens=30.0)
    budget = Budget(prices=prices, max_cost=1.0, max_tokens=None)
    budget.settle((0, 0), (60_000, 10_000))
    with pytest.raises(BudgetSpent, match=r"0\.9 of max_cost=1 is spent: it was not sent\n  -> raise the limit"):
        budget.promise(100, 4000)
    budget.promise(100, 3000)


def test_what_others_only_may_need_is_waited_for() -> None:
    budget = Budget(prices=None, max_cost=None, max_tokens=100)
    budget.promise(50, 40)
    done = threading.Event()

    def second() -> None:
        budget.promise(50, 0)
        done.set()

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    assert not done.wait(0.05)
    budget.settle((50, 40), (20, 5))
    assert done.wait(30)
    thread.join(30)


def test_who_waits_is_refused_as_soon_as_it_is_certain() -> None:
    budget = Budget(prices=None, max_cost=None, max_tokens=100)
    budget.promise(50, 40)
    refused = list[BudgetSpent]()

    def second() -> None:
        try:
            budget.promise(50, 0)
        except BudgetSpent as error:
            refused.append(error)

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    budget.settle((50, 40), (50, 40))
    thread.join(30)
    assert len(refused) == 1
