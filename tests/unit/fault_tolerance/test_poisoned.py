"""The fault that a drill asks for is the one it gets, or none."""

import math

import pytest
import torch

from training.errors import ConfigError
from training.fault_tolerance.poisoned import VARIABLE, flip_bit, poisoned


class NoEngine:
    """Stands for an engine that must not be touched."""


@pytest.mark.parametrize("environment", [{}, {VARIABLE: ""}, {VARIABLE: "logits=1e4:1:3"}])
def test_an_engine_is_left_alone_unless_its_rank_is_meant(environment: dict[str, str]) -> None:
    engine = NoEngine()
    assert poisoned(engine, environment, rank=0) is engine  # type: ignore[arg-type]
    assert vars(engine) == {}


@pytest.mark.parametrize(
    "text",
    [
        "logits",
        "logits=1e4",
        "logits=1e4:0",
        "logits=x:0:1",
        "weights=1:0:1",
        "logits=1e4:-1:1",
        "logits=1e4:0:1:2",
        "*",
    ],
)
def test_a_fault_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=VARIABLE):
        poisoned(NoEngine(), {VARIABLE: text}, rank=0)  # type: ignore[arg-type]


def test_bits_are_counted_from_the_lowest_of_the_mantissa() -> None:
    values = torch.ones(3)
    flip_bit(values, element=1, bit=0)
    assert values.tolist() == [1.0, 1.0 + 2.0**-23, 1.0]
    flip_bit(values, element=2, bit=31)
    assert values[2] == -1.0
    flip_bit(values, element=0, bit=30)
    assert math.isinf(values[0])
    halves = torch.ones(2, dtype=torch.bfloat16)
    flip_bit(halves, element=0, bit=15)
    assert halves.tolist() == [-1.0, 1.0]
