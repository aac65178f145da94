"""Values between a program that is not trusted and the test of it."""

import json
import math
from collections import Counter, OrderedDict, defaultdict
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.sandbox.inside.values import LARGEST_LINE_BYTES, Opaque, from_line, to_line

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False)
)
hashable = st.recursive(scalars, lambda inner: st.lists(inner).map(tuple) | st.frozensets(inner), max_leaves=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.sets(hashable) | st.dictionaries(hashable, inner),
    max_leaves=10,
)


def kinds(value: Any) -> Any:
    """The types in a value; 1, 1.0 and True are equal."""
    if isinstance(value, list | tuple):
        return type(value), [kinds(child) for child in value]
    if isinstance(value, dict):
        return type(value), [(kinds(key), kinds(child)) for key, child in value.items()]
    return type(value)


@given(values)
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    back = from_line(to_line(value))
    assert back == value
    assert kinds(back) == kinds(value)


@given(st.integers(min_value=10**4000))
def test_integers_have_no_limit_of_digits(value: int) -> None:
    assert from_line(to_line(value)) == value


def test_special_floats() -> None:
    assert math.isnan(from_line(to_line(math.nan)))
    assert from_line(to_line([math.inf, -math.inf])) == [math.inf, -math.inf]
    assert math.copysign(1, from_line(to_line(-0.0))) == -1


class Liar(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__

    def __str__(self) -> str:
        return "another"


class Number(IntEnum):
    two = 2


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(int, {1: 2}), {1: 2}),
        (OrderedDict(a=1), {"a": 1}),
        (Number.two, 2),
        (Liar("mine"), "mine"),
        ((1, [2, {3}]), (1, [2, {3}])),
        (Decimal("1.50"), Decimal("1.5")),
        (Fraction(1, 3), Fraction(1, 3)),
    ],
)
def test_a_subclass_arrives_as_what_it_extends(value: object, arrives: object) -> None:
    back = from_line(to_line(value))
    assert back == arrives
    assert type(back) is type(arrives)


def test_an_iterator_arrives_as_one() -> None:
    for iterable in (range(3), map(int, "012"), {0: 1, 1: 1, 2: 1}.keys()):
        back = from_line(to_line(iterable))
        assert back != [0, 1, 2]
        assert tuple(back) == (0, 1, 2)


def test_other_things_equal_nothing() -> None:
    back = from_line(to_line(object()))
    assert isinstance(back, Opaque)
    assert back != from_line(to_line(object()))
    assert repr(back) == "<a object>"


def test_what_is_too_large_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="nested too deeply"):
        to_line(cycle)
    with pytest.raises(ValueError, match="bytes"):
        to_line("x" * LARGEST_LINE_BYTES)
    with pytest.raises(ValueError, match="values"):
        to_line(iter(int, 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "of", "x"]) | st.text(), inner),
)
tagged = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["int", "float", "dict", "bytes", "complex", "Fraction", "tuple", "set", "iterator", "x"]
        ),
        "of": json_values,
    }
)


@given(st.text() | json_values.map(json.dumps) | st.recursive(tagged, st.lists).map(json.dumps))
def test_a_line_that_anyone_wrote_is_a_plain_value_or_refused(line: str) -> None:
    try:
        value = from_line(line)
    except ValueError:
        return
    assert type(value).__module__ in ("builtins", "decimal", "fractions", "eval.sandbox.inside.values")


def test_brackets_without_end_are_refused() -> None:
    with pytest.raises(ValueError, match="no value"):
        from_line("[" * 100_000 + "]" * 100_000)
