import itertools
import random

import pytest

from eval.benchmarks import bits_per_byte_data, exact_answer, needle
from eval.benchmarks.local_text import held_out_documents
from eval.benchmarks.needle_data import (
    LENGTHS_CHARACTERS,
    SHORT_LENGTHS_CHARACTERS,
    multi_needle_items,
    needle_items,
    short_needle_items,
)
from training.config.data_schema import SourceKind
from training.data.corpus import is_held_out


@pytest.mark.parametrize("kind", [SourceKind.kjv, SourceKind.python_stdlib])
def test_local_texts_are_those_that_training_keeps_out(kind: SourceKind) -> None:
    documents = held_out_documents(kind)
    assert len(documents) > 20
    assert all(is_held_out(document.id, fraction) for document in documents for fraction in (0.05, 0.2))


def test_whole_texts_are_short_and_end_with_a_line() -> None:
    items = bits_per_byte_data.rolling_items(SourceKind.python_stdlib)
    originals = {document.id: document.text for document in held_out_documents(SourceKind.python_stdlib)}
    cut = [item for item in items if item["text"] != originals[item["id"]]]
    assert cut
    for item in items:
        assert len(item["text"].encode()) <= 8_192
        assert originals[item["id"]].startswith(item["text"])
    assert all(item["text"].endswith("\n") for item in cut)


def test_needles_lie_at_every_depth_of_texts_of_every_length() -> None:
    items = needle_items()
    assert items == needle_items()
    assert len({item["id"] for item in items}) == len(items)
    assert {item["length"] for item in items[: len(LENGTHS_CHARACTERS)]} == set(LENGTHS_CHARACTERS)
    for item in items:
        (number,) = item["answers"]
        before, _, after = item["text"].partition(f"{item['start']} {number}.")
        assert after or item["depth"] == 1.0
        assert item["length"] <= len(item["text"]) <= item["length"] + 1_500
        assert len(before) / len(item["text"]) == pytest.approx(
            item["depth"], abs=0.35 if item["length"] < 2_000 else 0.2
        )


def test_short_texts_are_cut_where_their_length_is_reached() -> None:
    items = short_needle_items()
    assert items == short_needle_items()
    assert {(item["length"], item["depth"]) for item in items} == set(
        itertools.product(SHORT_LENGTHS_CHARACTERS, (0.0, 0.25, 0.5, 0.75, 1.0))
    )
    for item in items:
        needle_line = f"{item['start']} {item['answers'][0]}."
        assert item["text"].splitlines().count(needle_line) == 1
        assert len(item["text"]) == item["length"] + len(needle_line)


def test_no_other_number_stands_in_a_text() -> None:
    for item in needle_items() + multi_needle_items() + short_needle_items():
        assert needle.score(item, [item["text"]])["acc"] == 1.0
        digits = {word.strip(".") for word in item["text"].split() if any(c.isdigit() for c in word)}
        assert digits == set(item["answers"])


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("1234567 and 7654321", 1.0),
        ("1234567", 0.0),
        ("12345678, 7654321", 0.0),
        ("1,234,567 and 7654321", 0.0),
        ("", 0.0),
    ],
)
def test_all_needles_must_be_found_whole(answer: str, right: float) -> None:
    doc = {"answers": ["1234567", "7654321"], "length": 1000}
    assert needle.score(doc, [answer]) == {"acc": right, "acc_1000": right}


def test_a_random_guess_finds_no_needle() -> None:
    draw = random.Random(0)
    items = needle_items()
    guesses = [str(draw.randint(1_000_000, 9_999_999)) for _ in items]
    assert not any(needle.score(item, [guess])["acc"] for item, guess in zip(items, guesses, strict=True))


@pytest.mark.parametrize(
    ("answer", "right"),
    [(" Yes.", 1.0), ("Yes", 1.0), ("\nYes\nNo", 1.0), ("No.", 0.0), ("Yes and no", 0.0), ("", 0.0)],
)
def test_an_exact_answer_is_the_first_line(answer: str, right: float) -> None:
    assert exact_answer.score({"answer": "Yes"}, [answer]) == {"acc": right}
