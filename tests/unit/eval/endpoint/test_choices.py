import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.endpoint.choices import Question, scores

QUESTION = Question(context="The capital of France is ", options=(" Rome", " Paris", " Bonn"))


def test_options_are_listed_under_letters() -> None:
    assert QUESTION.prompt == (
        "The capital of France is\n\nA. Rome\nB. Paris\nC. Bonn\n\n"
        "Reply with the letter of the right option and nothing else."
    )


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ("B", 1),
        (" b.", 1),
        ("(C)", 2),
        ("**B**", 1),
        ("B. Paris", 1),
        ("The answer is B", 1),
        ("Answer: C", 2),
        ("paris", 1),
        ("Paris.", 1),
        ("D", None),
        ("", None),
        ("I am not sure", None),
        ("Both", None),
        ("A, but the answer is B", None),
        ("It's B", None),
    ],
)
def test_an_answer_names_one_option_or_none(said: str, chosen: int | None) -> None:
    assert QUESTION.chosen(said) == chosen


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=26))
def test_exactly_one_option_is_likely(said: str, options: list[str]) -> None:
    question = Question(context="c", options=tuple(options))
    logprobs, named = scores(question, said)
    assert sorted(logprobs) == [-math.inf] * (len(options) - 1) + [0.0]
    assert named == (question.chosen(said) is not None)


def test_where_none_is_named_each_option_is_taken_equally_often() -> None:
    """Always the first one would reward silence wherever the first is right."""
    taken = [scores(Question(context=str(i), options=("x", "y", "z", "w")), "?")[0].index(0.0) for i in range(2000)]
    assert all(420 < taken.count(option) < 580 for option in range(4))
