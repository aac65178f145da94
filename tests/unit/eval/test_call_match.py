import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks.bfcl import score, target
from eval.benchmarks.call_match import calls_match, read_calls

FUNCTION: dict[str, Any] = {
    "name": "shop.order",
    "parameters": {
        "type": "dict",
        "required": ["what"],
        "properties": {
            "what": {"type": "string"},
            "count": {"type": "integer"},
            "price": {"type": "float"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "size": {"type": "tuple", "items": {"type": "integer"}},
            "to": {"type": "dict"},
            "lines": {"type": "array", "items": {"type": "dict"}},
        },
    },
}
ANSWER: dict[str, list[Any]] = {
    "what": ["New York pizza"],
    "count": ["", 2],
    "price": ["", 3.0],
    "tags": ["", ["hot", "big"]],
    "size": ["", [1, 2]],
    "to": ["", {"street": ["Main St.", "Main Street"], "zip": ["", 12]}],
    "lines": ["", [{"a": [1]}, {"a": [2]}]],
}


def matches(text: str, answers: list[dict[str, Any]] | None = None) -> bool:
    calls = read_calls(text)
    return calls is not None and calls_match(calls, answers or [{"shop.order": ANSWER}], [FUNCTION])


@pytest.mark.parametrize(
    "arguments",
    [
        "what='New York pizza'",
        "what='new york, PIZZA'",
        "what='New York pizza', count=2",
        "what='New York pizza', count=1+1",
        "what='New York pizza', price=3",
        "what='New York pizza', tags=['Hot', 'big']",
        "what='New York pizza', size=(1, 2)",
        "what='New York pizza', to={'street': 'main st'}",
        "what='New York pizza', to={'street': 'Main Street', 'zip': 12}",
        "what='New York pizza', lines=[{'a': 1}, {'a': 2}]",
    ],
)
def test_what_was_asked_for_is_recognised(arguments: str) -> None:
    assert matches(f"[shop.order({arguments})]")


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "count=2",
        "what='Old York pizza'",
        "what='New York pizza', count=3",
        "what='New York pizza', count='2'",
        "what='New York pizza', count=2.0",
        "what='New York pizza', count=True",
        "what='New York pizza', other=1",
        "what='New York pizza', tags=['big', 'hot']",
        "what='New York pizza', tags=['hot']",
        "what='New York pizza', tags='hot'",
        "what='New York pizza', to={'zip': 12}",
        "what='New York pizza', to={'street': 'main st', 'floor': 1}",
        "what='New York pizza', lines=[{'a': 1}]",
        "what='New York pizza', lines=[{'a': 2}, {'a': 1}]",
        "**{'what': 'New York pizza'}",
    ],
)
def test_everything_else_is_not(arguments: str) -> None:
    assert not matches(f"[shop.order({arguments})]")


def test_a_variable_stands_for_itself_where_the_answer_has_one() -> None:
    answers = [{"shop.order": {"what": ["a"], "count": ["number"]}}]
    assert matches("[shop.order(what='a', count=number)]", answers)
    assert not matches("[shop.order(what='a', count=numbers)]", answers)


def test_several_calls_may_come_in_any_order_but_each_counts_once() -> None:
    answers = [{"shop.order": {"what": ["a"]}}, {"shop.order": {"what": ["b"]}}]
    assert matches("[shop.order(what='b'), shop.order(what='a')]", answers)
    assert not matches("[shop.order(what='b'), shop.order(what='b')]", answers)
    assert not matches("[shop.order(what='a')]", answers)
    assert not matches("[shop.order(what='a'), shop.order(what='b'), shop.order(what='b')]", answers)


@pytest.mark.parametrize(
    "text", ["```\n[shop.order(what='a')]\n```", "shop.order(what='a')", "'[shop.order(what=\"a\")]'"]
)
def test_the_list_may_lack_brackets_or_stand_in_backticks(text: str) -> None:
    # Quotes around it stay: brackets are put on before they would be taken off.
    assert matches(text, [{"shop.order": {"what": ["a"]}}]) == (not text.startswith("'"))


@pytest.mark.parametrize(
    "text",
    [
        "I cannot do that.",
        "[]",
        "[1]",
        "[shop.order(what='a'), 1]",
        "[f(x)(y=1)]",
        "[shop.order(what=__import__('os').system)]",
        "[shop.order(what=9**9**9)]",
        "[shop.order(what=1/0)]",
        "[shop.order(what=" + "[" * 5000 + "]" * 5000 + ")]",
        "[shop.order(what={[]: 1})]",
        "\0",
    ],
)
def test_nothing_is_run_and_nothing_raises(text: str) -> None:
    assert not matches(text)


@given(st.text() | st.text(alphabet="[](){}=,.'\"ab1-+*/ \\\n"))
def test_any_text_is_read_without_an_error(text: str) -> None:
    read_calls(text)


def test_the_first_allowed_values_are_a_right_answer() -> None:
    doc = {"functions": json.dumps([FUNCTION]), "answer": json.dumps([{"shop.order": ANSWER}])}
    assert target(doc) == "[shop.order(what='New York pizza')]"
    assert score(doc, [target(doc)]) == {"acc": 1.0, "parsed": 1.0}
    assert score(doc, ["[shop.order(count=2)]"]) == {"acc": 0.0, "parsed": 1.0}
    assert score(doc, ["I would order a pizza."]) == {"acc": 0.0, "parsed": 0.0}
