from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from eval.endpoint.request import Request, canonical

URL = "https://a.b/v1/completions"
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(st.text(), values, max_size=4)


def key(body: dict[str, Any], **others: Any) -> str:
    return Request(body=body, max_output_tokens=1, **others).key(URL)


@given(bodies, st.randoms())
def test_the_key_does_not_depend_on_the_order_of_names(body: dict[str, Any], draw: Any) -> None:
    names = list(body)
    draw.shuffle(names)
    assert key(body) == key({name: body[name] for name in names})


@given(bodies, bodies)
def test_different_questions_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (key(one) == key(other)) == (canonical(one) == canonical(other))


def test_address_and_try_are_part_of_the_key_and_the_task_is_not() -> None:
    body = {"model": "m", "prompt": "p"}
    assert key(body) == "36c9b8aad189d12045d195bb50eb2e502791bade557c3bd492bb221cbdc511d6", "journals outlive versions"
    assert key(body) != key(body, try_number=1)
    assert key(body) != Request(body=body, max_output_tokens=1).key("https://a.c/v1/completions")
    assert key(body) == key(body, task="other")


def test_no_byte_level_tokenizer_makes_more_tokens_of_a_prompt() -> None:
    assert Request(body={"prompt": "é"}, max_output_tokens=1).most_input_tokens == 4
    messages = [{"role": "user", "content": "ab"}]
    assert Request(body={"messages": messages}, max_output_tokens=1).most_input_tokens > 2
