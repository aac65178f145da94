"""How much of an item stands, word for word, in other text: n-grams of words, looked for as the text streams by. Pure.

After GPT-3 (Brown et al., arXiv:2005.14165, appendix C): an item is suspected if 13 words in a row stand in the
training text, or the whole item if it is shorter; case, punctuation and white space do not count. Only hashes of the
items' n-grams are kept, and the text is read once.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NGRAM_WORDS = 13
"""GPT-3's largest n; it took smaller ones only for speed with short items, which are compared whole here."""
FEWEST_WORDS = 8
"""GPT-3's smallest n, below which collisions are mere chance: a shorter first passage is not looked for on its own."""
_WORDING_OF_ITEMS = 10
"""What more items than these share is their benchmark's wording (its instructions), and says nothing of any of them."""
RULE_VERSION = 1
"""Raised with every change that can change an overlap."""

_WORD = re.compile(r"\w+")

Hashes = NDArray[np.uint64]


class OverlapSearch:
    """Looks for items in texts.

    Args:
        groups: benchmark -> item -> its passages, the one that tells it from other items first. N-grams lie within one
            passage. A first passage of 8 to 12 words is looked for whole, a shorter one together with the others.
    """

    def __init__(self, groups: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        self._values: dict[str, int] = {}
        self._ngrams = {group: self._of_items(items) for group, items in groups.items()}
        lengths = {n for items in self._ngrams.values() for ngrams in items.values() for n in ngrams}
        self._wanted = {
            n: np.unique(np.concatenate([g[n] for items in self._ngrams.values() for g in items.values() if n in g]))
            for n in sorted(lengths)
        }
        self._found = {n: np.zeros(len(wanted), dtype=bool) for n, wanted in self._wanted.items()}

    def look_in(self, texts: Iterable[str]) -> None:
        """Mark what stands in these texts; no stretch goes from one text into the next."""
        value, values = self._values.get, list[int]()
        for text in texts:
            values.extend([value(word, 0) for word in words(text)])
            values.append(0)
        for n, hashes in self._wanted_in(np.array(values, dtype=np.uint64)):
            self._found[n][np.searchsorted(self._wanted[n], hashes)] = True

    def found_in(self, texts: Sequence[str]) -> list[dict[str, dict[str, float]]]:
        """Return of each text: benchmark -> item -> the share of its n-grams that stand in it, where there are any.

        Unlike `look_in` it notes nothing: what a text holds does not depend on others. And an item of fewer than 8
        words is never found: it says something about all of the training text at most, not about one text.
        """
        value = self._values.get
        values = [np.array([value(word, 0) for word in words(text)], dtype=np.uint64) for text in texts]
        apart = np.zeros(1, dtype=np.uint64)
        together = np.concatenate([part for one in values for part in (one, apart)]) if values else apart
        if not any(len(hashes) for n, hashes in self._wanted_in(together) if n >= FEWEST_WORDS):
            return [{} for _ in texts]
        return [self._shares_in(one) for one in values]

    def overlaps(self) -> dict[str, dict[str, float]]:
        """Return benchmark -> item -> the share of its n-grams that was found; 0 for an item without words."""
        return {
            group: {item: self._share(ngrams) for item, ngrams in items.items()}
            for group, items in self._ngrams.items()
        }

    def _wanted_in(self, values: Hashes) -> Iterator[tuple[int, Hashes]]:
        """Yield (n, hashes of the items' n-grams that stand in a row of words)."""
        for n, hashes in _hashes(values, self._wanted):
            wanted = self._wanted[n]
            places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
            yield n, hashes[wanted[places] == hashes]

    def _shares_in(self, values: Hashes) -> dict[str, dict[str, float]]:
        """Return benchmark -> item -> the share of its n-grams that stand in a row of words."""
        numbers: Counter[tuple[str, str]] = Counter()
        for n, hashes in self._wanted_in(values):
            if n < FEWEST_WORDS:
                continue
            owners, items = self._owners[n]
            for found in np.unique(hashes):
                begin, end = np.searchsorted(owners, found, "left"), np.searchsorted(owners, found, "right")
                numbers.update(self._items[item] for item in items[begin:end])
        shares: dict[str, dict[str, float]] = defaultdict(dict)
        for (group, item), number in sorted(numbers.items()):
            shares[group][item] = number / sum(map(len, self._ngrams[group][item].values()))
        return dict(shares)

    @cached_property
    def _items(self) -> list[tuple[str, str]]:
        return [(group, item) for group, items in self._ngrams.items() for item in items]

    @cached_property
    def _owners(self) -> dict[int, tuple[Hashes, NDArray[np.int64]]]:
        """Return n -> all items' n-grams in order, and the number of the item that each belongs to."""
        owners = {}
        for n in self._wanted:
            parts = [
                (hashes, np.full(len(hashes), number))
                for number, (group, item) in enumerate(self._items)
                if (hashes := self._ngrams[group][item].get(n)) is not None
            ]
            hashes, items = (np.concatenate(column) for column in zip(*parts, strict=True))
            order = np.argsort(hashes, kind="stable")
            owners[n] = (hashes[order], items[order])
        return owners

    def _share(self, ngrams: Mapping[int, Hashes]) -> float:
        found = [self._found[n][np.searchsorted(self._wanted[n], hashes)] for n, hashes in ngrams.items()]
        return float(np.concatenate(found).mean()) if found else 0.0

    def _of_items(self, items: Mapping[str, Sequence[str]]) -> dict[str, dict[int, Hashes]]:
        """Return item -> n -> its n-grams of so many words, without those of the benchmark's wording."""
        ngrams = {item: self._of_passages(passages) for item, passages in items.items()}
        wording: dict[int, Hashes] = {}
        for n in {n for found in ngrams.values() for n in found}:
            distinct, counts = np.unique(
                np.concatenate([found[n] for found in ngrams.values() if n in found]), return_counts=True
            )
            wording[n] = distinct[counts > _WORDING_OF_ITEMS]
        return {item: _without(found, wording) or found for item, found in ngrams.items()}

    def _of_passages(self, passages: Sequence[str]) -> dict[int, Hashes]:
        split = [words(passage) for passage in passages]
        if split and len(split[0]) < FEWEST_WORDS:
            split = [[word for passage in split for word in passage]]
        found: dict[int, list[Hashes]] = defaultdict(list)
        for place, passage in enumerate(split):
            n = min(NGRAM_WORDS, len(passage))
            if n == NGRAM_WORDS or (place == 0 and n):
                values = np.array([self._value(word) for word in passage], dtype=np.uint64)
                found[n].extend(hashes for _, hashes in _hashes(values, {n}))
        return {n: np.unique(np.concatenate(hashes)) for n, hashes in found.items()}

    def _value(self, word: str) -> int:
        """Return the random number of a word of the items; other words have 0."""
        if word not in self._values:
            self._values[word] = random_number(word)
        return self._values[word]


def words(text: str) -> list[str]:
    """Return the words of a text: runs of letters, digits and underscores, without their case.

    A script without spaces gives a word per clause, so there only long literal copies are found.
    """
    return _WORD.findall(text.casefold())


def random_number(text: str) -> int:
    """Return 64 bits that are as good as random, always the same for the same text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


_FACTORS = np.array([random_number(f"factor {i}") | 1 for i in range(NGRAM_WORDS)], dtype=np.uint64)
"""Odd, so that no bit of a word's number is lost."""


def _hashes(values: Hashes, lengths: Iterable[int]) -> Iterable[tuple[int, Hashes]]:
    """Yield (n, hashes of all stretches of n words that the items have), for the lengths that are wanted.

    A hash is the sum of the words' numbers times a factor for their place, modulo 2^64: two n-grams share one with a
    probability of about 2^-64.
    """
    wanted = set(lengths)
    num_unknown = np.concatenate([[0], np.cumsum(values == 0)])
    sums = np.zeros(len(values), dtype=np.uint64)
    for n in range(1, min(max(wanted, default=0), len(values)) + 1):
        sums = sums[: len(values) - n + 1] + values[n - 1 :] * _FACTORS[n - 1]
        if n in wanted:
            yield n, sums[num_unknown[n:] == num_unknown[:-n]]


def _without(ngrams: Mapping[int, Hashes], left_out: Mapping[int, Hashes]) -> dict[int, Hashes]:
    kept = {n: np.setdiff1d(hashes, left_out[n], assume_unique=True) for n, hashes in ngrams.items()}
    return {n: hashes for n, hashes in kept.items() if len(hashes)}
