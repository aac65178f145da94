"""Text to learn finding needles from: hidden numbers that are asked for again at the end, and none that is measured.

Like the items of the benchmark `short_needle`, but of chapters that training may see, and with other facts.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from eval.benchmarks.local_text import HELD_OUT_FRACTION
from eval.benchmarks.needle_data import CITIES, SHORT_NUMBERS, hay, hide, short_needle_items
from training.config.data_schema import SourceConfig, SourceKind
from training.data.corpus import is_held_out, read_documents


def write_texts(folder: Path, *, num_documents: int, longest_characters: int, seed: int) -> None:
    """Write documents, one a file, of hay between none and the longest; the same for the same arguments."""
    folder.mkdir(parents=True)
    verses = _training_verses()
    measured = {(item["start"], *item["answers"]) for item in short_needle_items()}
    draw = random.Random(f"{seed} {longest_characters}")
    for number in range(num_documents):
        (folder / f"{number:06d}.txt").write_text(_document(draw, verses, longest_characters, measured))


def _document(draw: random.Random, verses: list[str], longest_characters: int, measured: set[tuple[str, str]]) -> str:
    start, city, number = next(fact for fact in _facts(draw) if (fact[0], fact[2]) not in measured)
    text = hide([(draw.random(), city, number)], hay(verses, draw.randint(0, longest_characters), draw, cut=True))
    return f"{text}\n\n{start} {number}.\n"


def _facts(draw: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield (start of the sentence, city, number) of facts without end."""
    while True:
        city, number = draw.choice(CITIES), str(draw.randint(*SHORT_NUMBERS))
        yield f"The secret number of {city} is", city, number


def _training_verses() -> list[str]:
    return [
        verse
        for document in read_documents("kjv", SourceConfig(kind=SourceKind.kjv))
        if not is_held_out(document.id, HELD_OUT_FRACTION)
        for verse in document.text.splitlines()
    ]
