import pytest

from eval.endpoint.budget import Prices
from eval.endpoint.journal import Answered
from eval.endpoint.usage import usage_of, usage_per_task


def answered(attempt: int, *, end: float, seconds: float, tokens: tuple[int, int] | None, task: str = "t") -> Answered:
    usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}}
    response = {"choices": [], **usage}
    return Answered(attempt=attempt, key=str(attempt), task=task, time=end, seconds=seconds, response=response)


ANSWERS = [
    answered(1, end=10.0, seconds=4.0, tokens=(100, 10)),
    answered(2, end=12.0, seconds=4.0, tokens=(300, 30)),  # two seconds of it beside the first
    answered(3, end=1012.0, seconds=2.0, tokens=None, task="u"),  # after a restart
]
PRICES = Prices(per_million_input_tokens=1.0, per_million_output_tokens=10.0)


def test_time_under_way_is_counted_once_and_pauses_are_not() -> None:
    usage = usage_of(ANSWERS, PRICES)
    assert usage.busy_seconds == pytest.approx(8.0)
    assert usage.output_tokens_per_second == pytest.approx(5.0)


def test_what_the_server_did_not_count_is_not_guessed() -> None:
    usage = usage_of(ANSWERS, PRICES)
    assert (usage.answers, usage.uncounted_answers, usage.input_tokens, usage.output_tokens) == (3, 1, 400, 40)
    assert usage.cost == pytest.approx(800e-6)
    assert usage.cost_per_million_tokens == pytest.approx(800 / 440)


def test_each_task_has_its_bill() -> None:
    per_task = usage_per_task(ANSWERS, None)
    assert {task: usage.answers for task, usage in per_task.items()} == {"t": 2, "u": 1}
    assert per_task["t"].cost is None
    assert per_task["u"].cost_per_million_tokens is None


def test_nothing_takes_nothing() -> None:
    usage = usage_of([], PRICES)
    assert (usage.answers, usage.cost, usage.output_tokens_per_second) == (0, 0.0, None)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": "3"}])
def test_a_count_that_is_none_is_unknown(usage: object) -> None:
    found = Answered(attempt=1, key="k", task="", time=0.0, seconds=0.0, response={"usage": usage})
    assert found.tokens is None
