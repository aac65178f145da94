"""Documents that are nearly the same: MinHash signatures, and an index of them by LSH (arXiv:2107.06499, section 4.2).

Two documents' similarity is the Jaccard index of their sets of word n-grams; the share of equal numbers in their
signatures estimates it. Signatures and index are datasketch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.config.data_schema import NearDuplicatesConfig
from training.data.text_overlap import random_number, words
from training.errors import ConfigError

if TYPE_CHECKING:
    from datasketch import MinHash

_SEED = 1
_MOST_KNOWN_WORDS = 2**20
"""Whose numbers a process remembers."""
_EMPTY = np.iinfo(np.uint32).max
"""What a signature of no n-gram holds."""

Signature = NDArray[np.uint32]


class Signatures:
    """Makes the signatures of documents."""

    def __init__(self, config: NearDuplicatesConfig) -> None:
        self._ngram_words = config.ngram_words
        # Odd, so that no bit of a word's number is lost.
        factors = [random_number(f"near duplicate {place}") | 1 for place in range(config.ngram_words)]
        self._factors = np.array(factors, dtype=np.uint64)
        self._empty = _empty_minhash(config)
        self._numbers: dict[str, int] = {}

    def of(self, text: str) -> Signature:
        """Return a document's signature; one shorter than an n-gram counts as a single one."""
        numbers = np.array([self._number(word) for word in words(text)], dtype=np.uint64)
        num_ngrams = max(len(numbers) - self._ngram_words + 1, min(len(numbers), 1))
        numbers = np.concatenate([numbers, np.zeros(self._ngram_words, dtype=np.uint64)])
        hashes = np.zeros(num_ngrams, dtype=np.uint64)
        for place, factor in enumerate(self._factors):
            hashes += numbers[place : place + num_ngrams] * factor
        signature = self._empty.copy()
        # The upper half: the lowest bits of such a sum depend on the words' lowest bits alone.
        signature.update_batch(np.unique((hashes >> np.uint64(32)).astype(np.uint32)).tolist())
        return signature.hashvalues

    def _number(self, word: str) -> int:
        number = self._numbers.get(word)
        if number is None:
            if len(self._numbers) >= _MOST_KNOWN_WORDS:
                self._numbers.clear()
            number = self._numbers[word] = random_number(word)
        return number


class SimilarDocuments:
    """Documents by number, each of which can be asked for those that came before.

    Raises:
        ConfigError: there are too few hash functions for the similarity.
    """

    def __init__(self, config: NearDuplicatesConfig) -> None:
        from datasketch import MinHashLSH  # see _empty_minhash

        self._similarity = config.similarity
        self._minhash = _empty_minhash(config)
        try:
            self._index = MinHashLSH(threshold=config.similarity, num_perm=config.num_hashes)
        except ValueError as error:
            raise ConfigError(
                "data.near_duplicates.num_hashes",
                config.num_hashes,
                f"that is too few to find documents of similarity {config.similarity}: {error}",
                "data.near_duplicates.num_hashes=128 works",
            ) from error
        self._signatures: dict[int, Signature] = {}

    def add_unless_similar(self, number: int, signature: Signature) -> tuple[int, float] | None:
        """Return the most similar document that was added before, and how similar; None if none is: then add this one.

        Args:
            number: of the document.
            signature: by `Signatures`; one of a document without words is similar to none.
        """
        if signature[0] == _EMPTY and np.all(signature == _EMPTY):
            return None
        minhash = self._minhash.copy()
        minhash.hashvalues = signature
        candidates = [number for number in self._index.query(minhash) if isinstance(number, int)]
        estimates = [(float(np.mean(self._signatures[earlier] == signature)), -earlier) for earlier in candidates]
        similar = max((estimate for estimate in estimates if estimate[0] >= self._similarity), default=None)
        if similar is not None:
            return -similar[1], similar[0]
        self._index.insert(number, minhash, check_duplication=False)
        self._signatures[number] = signature
        return None


def _empty_minhash(config: NearDuplicatesConfig) -> MinHash:
    from datasketch import MinHash  # half a second of imports, which preparations without this need not spend

    return MinHash(num_perm=config.num_hashes, seed=_SEED, hashfunc=int)
