import ast
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.function_calls import parse_calls
from eval.workflows.calls import safe_call

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
)


def made(text: str) -> str:
    calls = parse_calls(text)
    assert calls is not None
    return safe_call(calls[0], {"move", "sort"})


@given(VALUES, st.text())
def test_what_is_run_is_what_was_written(value: Any, text: str) -> None:
    call = ast.parse(made(f"[move({value!r}, target={text!r})]"), mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.literal_eval(call.args[0]) == value
    assert ast.literal_eval(call.keywords[0].value) == text


@given(st.text(alphabet="move sort()[]{},='\"\\ab1:"))
def test_whatever_a_model_writes_only_literals_are_run(text: str) -> None:
    for call in parse_calls(text) or []:
        try:
            safe = safe_call(call, {"move", "sort"})
        except ValueError:
            continue
        node = ast.parse(safe, mode="eval").body
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        assert node.func.id in {"move", "sort"}
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            ast.literal_eval(argument)


def test_a_name_before_a_bracket_in_a_text_is_not_taken_for_a_call() -> None:
    # The leaderboard's code would put its own names there; see _process_method_calls in multi_turn_utils.
    assert not re.search(r"\b([a-zA-Z_]\w*)\s*(?=\()", made("[move(note='please sort (all)')]").removeprefix("move("))
    assert "sort (all)" in ast.unparse(ast.parse(made("[move(note='please sort (all)')]")))


@pytest.mark.parametrize(
    "text",
    [
        "[remove(a=1)]",
        "[systems.move(a=1)]",
        "[__import__('os').system('true')]",
        "[(lambda: 1)()]",
        "[move(a=sort(b=1))]",
        "[move(a=b)]",
        "[move(a=b.c)]",
        "[move(a=[x for x in 'ab'])]",
        "[move(a=f'{1}')]",
        "[move(*[1])]",
        "[move(**{'a': 1})]",
        "[move(a=1e999)]",
        "[move(a=-1e999)]",
        "[move(a=b'x')]",
        "[move(a={1})]",
        "[move(a=1j)]",
        "[move(a=...)]",
    ],
)
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"there is no function|is no literal|by their names"):
        made(text)


@pytest.mark.parametrize(
    "text",
    [
        f"[move(a={'1+' * 4000}1)]",
        f"[move(a={'-' * 4000}1)]",
        f"[{'a.' * 4000}b(c=1)]",
        f"[move(a=0x{'f' * 9000})]",
        f"[move(a={'9' * 9000})]",
        f"[move{'(a=1)' * 3000}]",
    ],
    ids=lambda text: text[:12],
)
def test_what_is_too_deep_or_too_large_is_no_error_of_ours(text: str) -> None:
    for call in parse_calls(text) or []:
        with pytest.raises(ValueError, match=r"^.{1,200}$"):
            safe_call(call, {"move"})


def test_no_float_is_written_as_a_name() -> None:
    assert not math.isfinite(ast.literal_eval("1e999"))
    assert made("[move(a=1e308)]") == "move(a=1e+308)"
