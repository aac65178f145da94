"""Verdicts on functions: right ones pass, whatever else they do; the reason why another does not is short."""

import pytest

from eval.sandbox.functions import FunctionCheck, Verdict, check_function, check_functions
from eval.sandbox.limits import Limits
from tests.drills.deceiving_answers import CONTEXT, DECEIVING, HONEST, TEST
from tests.unit.eval.sandbox.available import why_not
from training.errors import DataError

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
QUICK = ["wrong", "ends with success at once", "equals everything", "a verdict on stderr", "patched builtins"]


def on_add(program: str, test: str = TEST) -> FunctionCheck:
    return FunctionCheck(program=program, function="add", context=CONTEXT, test=test)


def test_honest_answers_pass_and_others_do_not_in_the_order_given() -> None:
    answers = [*HONEST.values(), *(DECEIVING[name] for name in QUICK)]
    verdicts = check_functions([on_add(answer) for answer in answers], workers=2)
    assert [verdict.passed for verdict in verdicts] == [True] * len(HONEST) + [False] * len(QUICK)
    assert verdicts[0] == Verdict(passed=True, why="")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("def add(a, b):\n    return a - b", "not so: assert candidate(2, 3) == 5"),
        (
            "def add(a, b):\n    return None + a",
            "raised TypeError: unsupported operand type(s) for +: 'NoneType' and 'int'",
        ),
        ("def add(a, b:", "raised SyntaxError: '(' was never closed (answer, line 1)"),
        ("", "raised KeyError: 'add'"),
        ("import sys\nsys.exit(0)", "raised SystemExit: 0"),
        ("import os\nos._exit(0)", "the program ended before the test did (exited)"),
        ("def add(a, b):\n    while True: pass", "the program ended before the test did (CPU time)"),
        ("def add(a, b):\n    while True: print('x' * 1000)", "the program ended before the test did (output)"),
        ("import time\ndef add(a, b):\n    time.sleep(10**6)", "no end within 5 s"),
    ],
)
def test_why_an_answer_is_wrong(program: str, why: str) -> None:
    limits = Limits(cpu_seconds=1, wall_seconds=5.0 if "sleep" in program else 60.0)
    assert check_function(on_add(program), limits=limits) == Verdict(passed=False, why=why)


def test_a_test_may_use_what_stands_beside_the_function_and_the_function_itself() -> None:
    context = "def twice(x):\n    return 2 * x\n\ndef half(x):\n    '''Undo it.'''\n"
    test = "def check(candidate):\n    assert twice(candidate(4)) == 4 and half is candidate\n    print('said')"
    program = "def half(x):\n    return x // 2"
    check = FunctionCheck(program=program, function="half", context=context, test=test)
    assert check_function(check).passed


def test_a_test_that_does_not_run_is_nobodys_wrong_answer() -> None:
    with pytest.raises(DataError, match="the test of add does not run: NameError"):
        check_function(on_add("def add(a, b): return a + b", test="nothing"))
