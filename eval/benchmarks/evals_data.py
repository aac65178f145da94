"""Items of the package `evals`: multiple choice, regular expressions, pointers. Damaged and repeated ones are left out.

Only the named members of the wheel are read: unpacked, it is 722 MB.
"""

import ast
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

Extract = Callable[[zipfile.ZipFile], Sequence[dict[str, Any] | None]]
"""Returns an item for each sample of a wheel, None for one that is not used."""

_DATA = "evals/registry/data"
_NUM_CHOICES = 4
_LINE_MARKS = tuple(rf"(?m:^){letter}\. ?" for letter in "ABCD")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Questions:
    """How a set writes its questions down."""

    member: str
    marks: tuple[str, ...] = _LINE_MARKS
    """Regular expressions of what stands before each choice, in order."""
    tail: str = r"\s*(Answer:)?\s*$"
    """What follows the last choice."""


_QUESTIONS = {
    "accounting_audit": _Questions(
        member="accounting_audit/samples.jsonl",
        marks=tuple(rf"(?<=\s){letter}\. " for letter in "ABCD"),
        tail=r"\s*For each question,? (you must )?select one of the following answers: 'A', 'B', 'C', 'D'\.\s*$",
    ),
    "cissp": _Questions(member="cissp-study-questions/samples.jsonl"),
    "fcc_amateur_extra": _Questions(member="fcc_amateur_extra/samples.jsonl"),
    # Each choice has its letter twice: "A. A.Zhao chose to travel by car."
    "logiqa": _Questions(
        member="logiqa/logiqa.jsonl",
        marks=tuple(rf"(?m:^){letter}\. ({letter}\. ?)?" for letter in "ABCD"),
    ),
    "medmcqa": _Questions(member="medmcqa/samples.jsonl", marks=tuple(rf"(?m:^)\s*{letter}\)\s*" for letter in "abcd")),
    "us_tort_law": _Questions(member="us_tort_law/samples.jsonl"),
}
_POINTER_MEMBERS = tuple(
    f"pointer-value-retrieval/{difficulty}_{shots}_examples.jsonl"
    for difficulty in ("easy", "hard")
    for shots in ("few", "many")
)
"""Not the medium ones: most of their answers are not what the pointer names."""
_POINTER_TASK = (
    "Figure out the pattern in the following examples and apply it to the last line. Answer with one digit.\n"
)


def _choices(name: str, wheel: zipfile.ZipFile) -> list[dict[str, Any] | None]:
    """Return the questions of a multiple-choice set."""
    questions = _QUESTIONS[name]
    return [
        _question(sample["input"][-1]["content"], sample["ideal"], questions)
        for sample in _samples(wheel, questions.member)
    ]


def _question(text: str, ideal: str, questions: _Questions) -> dict[str, Any] | None:
    """Return a question with its choices; None unless four different choices of one line each are clearly told apart.

    A choice of several lines is a defect of the source: the next question, with its answer, hangs on to it.
    """
    text = re.sub(questions.tail, "", text)
    starts, ends = [], []
    for mark in questions.marks:
        found = re.compile(mark).search(text, ends[-1] if ends else 0)
        if found is None:
            return None
        starts.append(found.start())
        ends.append(found.end())
    choices = [text[end:start].strip() for end, start in zip(ends, [*starts[1:], len(text)], strict=True)]
    question = text[: starts[0]].strip()
    right = "ABCD".find(ideal[:1].upper())
    clear = (
        question
        and all(choices)
        and len(set(choices)) == _NUM_CHOICES
        and not any("\n" in choice for choice in choices)
        and right >= 0
        # Some sets repeat the answer's text after its letter.
        and ideal[1:].lstrip(".) ").strip() in ("", choices[right])
    )
    return {"question": question, "choices": choices, "answer": right} if clear else None


def _regular_expressions(wheel: zipfile.ZipFile) -> list[dict[str, Any] | None]:
    """Return questions whether a pattern of Python's re is found in a string."""
    return [
        {"question": sample["input"][-1]["content"], "answer": sample["ideal"].rstrip(".")}
        for sample in _samples(wheel, "regex-match/samples.jsonl")
    ]


def _pointers(wheel: zipfile.ZipFile) -> list[dict[str, Any] | None]:
    """Return lists whose first number points at another one, behind examples of the same; answers are checked."""
    items: list[dict[str, Any] | None] = []
    for member in _POINTER_MEMBERS:
        for sample in _samples(wheel, member):
            *_, last = lines = [message["content"].strip() for message in sample["input"][1:]]
            values = ast.literal_eval(last.removesuffix("->").strip())
            pointer, digits = values if isinstance(values, tuple) else (values[0], values[1:])
            answer = str(digits[pointer])
            right = sample["ideal"] == f"ANSWER: {answer}"
            items.append({"question": _POINTER_TASK + "\n".join(lines), "answer": answer} if right else None)
    return items


def _samples(wheel: zipfile.ZipFile, member: str) -> Iterator[dict[str, Any]]:
    for line in wheel.read(f"{_DATA}/{member}").decode("utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


EXTRACT: dict[str, Extract] = {
    **{name: partial(_choices, name) for name in _QUESTIONS},
    "pointer_value_retrieval": _pointers,
    "regex_match": _regular_expressions,
}
"""Benchmark -> what reads its items."""
