"""Long texts with numbers hidden in them: one, or several that must all be found. The same on every machine.

After "needle in a haystack": the length of the text and the depth of the needle are varied on a grid. Lengths count
characters, since the tokens of a text depend on the model's tokenizer. The hay is verses of the King James Version,
without their numbers, so that no other digit stands in it.
"""

import random
from typing import Any

from eval.benchmarks.local_text import held_out_documents
from training.config.schema import SourceKind

LENGTHS_CHARACTERS = (1_000, 4_000, 16_000, 64_000)
"""About 250, 1,000, 4,000 and 16,000 tokens of English with a common tokenizer."""
_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the needle lies: 0 before everything, 1 after everything."""
_REPEATS = 4
"""Items of each length and depth, or of each length as many as of all depths where the needles lie anywhere."""
_NUM_NEEDLES = 4
_CITIES = ("Lisbon", "Nairobi", "Oslo", "Quito", "Hanoi", "Perth", "Dakar", "Lima", "Turin", "Osaka", "Tunis", "Riga")
_SMALLEST_NUMBER, _LARGEST_NUMBER = 1_000_000, 9_999_999


def needle_items() -> list[dict[str, Any]]:
    """Return items with one needle, at every length and depth."""
    verses = _verses()
    items = []
    # In this order, the first items are of all lengths, then of all depths: a suite may ask for a few of them.
    for repeat in range(_REPEATS):
        for depth in _DEPTHS:
            for length in LENGTHS_CHARACTERS:
                # Seeded by the item's own place: another length in the grid changes none of the others.
                draw = random.Random(f"needle {length} {depth} {repeat}")
                city, number = draw.choice(_CITIES), str(draw.randint(_SMALLEST_NUMBER, _LARGEST_NUMBER))
                items.append(
                    {
                        "id": f"{length}-{depth}-{repeat}",
                        "length": length,
                        "depth": depth,
                        "text": _hide([(depth, city, number)], _hay(verses, length, draw)),
                        "question": f"What is the secret number of {city}?",
                        "start": f"The secret number of {city} is",
                        "answers": [number],
                    }
                )
    return items


def multi_needle_items() -> list[dict[str, Any]]:
    """Return items with several needles, each anywhere in a part of the text of its own."""
    verses = _verses()
    items = []
    for repeat in range(_REPEATS * len(_DEPTHS)):
        for length in LENGTHS_CHARACTERS:
            draw = random.Random(f"multi_needle {length} {repeat}")
            cities = draw.sample(_CITIES, _NUM_NEEDLES)
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
                    "text": _hide(needles, _hay(verses, length, draw)),
                    "question": f"What are the secret numbers of {named}?",
                    "start": f"The secret numbers of {named} are",
                    "answers": [number for _, _, number in needles],
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


def _hay(verses: list[str], length: int, draw: random.Random) -> list[str]:
    """Return verses in a row, from anywhere on and round the end, together as long as asked or one verse longer."""
    start, hay, characters = draw.randrange(len(verses)), list[str](), 0
    while characters < length:
        hay.append(verses[(start + len(hay)) % len(verses)])
        characters += len(hay[-1]) + 1
    return hay


def _hide(needles: list[tuple[float, str, str]], hay: list[str]) -> str:
    """Return the hay as lines, each needle before the verse at its depth; needles are sorted by depth."""
    lines = list(hay)
    for depth, city, number in reversed(needles):
        lines.insert(round(depth * len(hay)), f"The secret number of {city} is {number}.")
    return "\n".join(lines)
