"""Long texts with numbers hidden in them: one, or several that must all be found. The same on every machine.

After "needle in a haystack": the length of the text and the depth of the needle are varied on a grid. Lengths count
characters, since the tokens of a text depend on the model's tokenizer. The hay is verses of the King James Version,
without their numbers, so that no other digit stands in it.
"""

import random
from collections.abc import Sequence
from typing import Any

from eval.benchmarks.local_text import held_out_documents
from training.config.data_schema import SourceKind

LENGTHS_CHARACTERS = (1_000, 4_000, 16_000, 64_000)
"""About 250, 1,000, 4,000 and 16,000 tokens of English with a common tokenizer."""
SHORT_LENGTHS_CHARACTERS = (100, 250, 500, 1_000, 1_500)
"""Of texts that a model of a few hundred thousand weights learns from within minutes."""
_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the needle lies: 0 before everything, 1 after everything."""
_REPEATS = 4
"""Items of each length and depth, or of each length as many as of all depths where the needles lie anywhere."""
_NUM_NEEDLES = 4
CITIES = ("Lisbon", "Nairobi", "Oslo", "Quito", "Hanoi", "Perth", "Dakar", "Lima", "Turin", "Osaka", "Tunis", "Riga")
_SMALLEST_NUMBER, _LARGEST_NUMBER = 1_000_000, 9_999_999
SHORT_NUMBERS = (1_000, 9_999)
"""Smallest and largest number in short texts."""


def needle_items() -> list[dict[str, Any]]:
    """Return items with one needle, at every length and depth."""
    return _one_needle("needle", LENGTHS_CHARACTERS, (_SMALLEST_NUMBER, _LARGEST_NUMBER))


def short_needle_items() -> list[dict[str, Any]]:
    """Return the same of short texts, with a number of four digits, cut to the character."""
    return _one_needle("short_needle", SHORT_LENGTHS_CHARACTERS, SHORT_NUMBERS, cut=True)


def multi_needle_items() -> list[dict[str, Any]]:
    """Return items with several needles, each anywhere in a part of the text of its own."""
    verses = _verses()
    items = []
    for repeat in range(_REPEATS * len(_DEPTHS)):
        for length in LENGTHS_CHARACTERS:
            draw = random.Random(f"multi_needle {length} {repeat}")
            cities = draw.sample(CITIES, _NUM_NEEDLES)
            numbers = draw.sample(range(_SMALLEST_NUMBER, _LARGEST_NUMBER + 1), _NUM_NEEDLES)
            needles = [
                ((part + draw.random()) / _NUM_NEEDLES, city, str(number))
                for part, (city, number) in enumerate(zip(cities, numbers, strict=True))
            ]
            named = ", ".join(cities[:-1]) + f" and {cities[-1]}"
            items.append(
                {
                    "id": f"{length}-{repeat}",
                    "length": length,
                    "text": hide(needles, hay(verses, length, draw)),
                    "question": f"What are the secret numbers of {named}?",
                    "start": f"The secret numbers of {named} are",
                    "answers": [number for _, _, number in needles],
                }
            )
    return items


def _one_needle(
    benchmark: str, lengths: Sequence[int], numbers: tuple[int, int], *, cut: bool = False
) -> list[dict[str, Any]]:
    verses = _verses()
    items = []
    # In this order, the first items are of all lengths, then of all depths: a suite may ask for a few of them.
    for repeat in range(_REPEATS):
        for depth in _DEPTHS:
            for length in lengths:
                # Seeded by the item's own place: another length in the grid changes none of the others.
                draw = random.Random(f"{benchmark} {length} {depth} {repeat}")
                city, number = draw.choice(CITIES), str(draw.randint(*numbers))
                items.append(
                    {
                        "id": f"{length}-{depth}-{repeat}",
                        "length": length,
                        "depth": depth,
                        "text": hide([(depth, city, number)], hay(verses, length, draw, cut=cut)),
                        "question": f"What is the secret number of {city}?",
                        "start": f"The secret number of {city} is",
                        "answers": [number],
                    }
                )
    return items


def _verses() -> list[str]:
    return [
        verse
        for document in held_out_documents(SourceKind.kjv)
        for verse in document.text.splitlines()
        if verse and not any(character.isdigit() for character in verse)
    ]


def hay(verses: Sequence[str], length: int, draw: random.Random, *, cut: bool = False) -> list[str]:
    """Return verses in a row, from anywhere on and round the end, together as long as asked or one verse longer.

    Args:
        verses: to choose from.
        length: characters, with a line's end after each verse.
        draw: says where they begin.
        cut: whether the last one ends where the length is reached.
    """
    start, chosen, characters = draw.randrange(len(verses)), list[str](), 0
    while characters < length:
        chosen.append(verses[(start + len(chosen)) % len(verses)])
        characters += len(chosen[-1]) + 1
    if cut and characters > length:
        chosen[-1] = chosen[-1][: length - characters]
    return chosen


def hide(needles: Sequence[tuple[float, str, str]], verses: Sequence[str]) -> str:
    """Return the verses as lines, each needle (depth, city, number) before the verse at its depth; sorted by depth."""
    lines = list(verses)
    for depth, city, number in reversed(needles):
        lines.insert(round(depth * len(verses)), f"The secret number of {city} is {number}.")
    return "\n".join(lines)
