import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config.data_schema import NearDuplicatesConfig
from training.data.near_duplicates import Signatures, SimilarDocuments
from training.data.text_overlap import words
from training.errors import ConfigError

CONFIG = NearDuplicatesConfig()
SIGNATURES = Signatures(CONFIG)
LONG = [f"word{i}" for i in range(200)]


def ngrams(text: str) -> set[tuple[str, ...]]:
    row, n = words(text), CONFIG.ngram_words
    return {tuple(row[place : place + n]) for place in range(max(len(row) - n + 1, min(len(row), 1)))}


@settings(max_examples=50)
@given(first=st.integers(0, 150), changed=st.lists(st.integers(0, 199), max_size=30), more=st.integers(0, 150))
def test_equal_numbers_of_signatures_estimate_the_share_of_common_ngrams(
    first: int, changed: list[int], more: int
) -> None:
    other = [f"changed{i}" if i in changed else word for i, word in enumerate(LONG)][first:]
    one, two = " ".join(LONG), " ".join([*other, *(f"more{i}" for i in range(more))])
    similarity = len(ngrams(one) & ngrams(two)) / len(ngrams(one) | ngrams(two))
    estimate = np.mean(SIGNATURES.of(one) == SIGNATURES.of(two))
    standard_error = np.sqrt(similarity * (1 - similarity) / CONFIG.num_hashes)
    assert abs(estimate - similarity) <= 6 * standard_error


def test_case_punctuation_and_white_space_do_not_count() -> None:
    assert np.array_equal(SIGNATURES.of("To be, or not to be:\nthat is"), SIGNATURES.of("to BE or not to be that  is!"))


def test_a_signature_is_the_same_in_every_process() -> None:
    code = (
        "from training.config.data_schema import NearDuplicatesConfig as C;"
        "from training.data.near_duplicates import Signatures as S;"
        "print(S(C()).of('the same words everywhere and always').tolist())"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert told.strip() == str(SIGNATURES.of("the same words everywhere and always").tolist())


def test_the_most_similar_of_earlier_documents_is_named_and_only_others_are_added() -> None:
    similar = SimilarDocuments(CONFIG)
    whole = SIGNATURES.of(" ".join(LONG))
    assert similar.add_unless_similar(3, whole) is None
    assert similar.add_unless_similar(4, SIGNATURES.of(" ".join(LONG[:100]))) is None, "half of it is another text"
    found = similar.add_unless_similar(5, SIGNATURES.of(" ".join([*LONG[:-3], "x", "y", "z"])))
    assert found is not None
    assert found[0] == 3
    assert CONFIG.similarity <= found[1] < 1
    assert similar.add_unless_similar(6, whole) == (3, 1.0)


def test_texts_without_words_are_similar_to_none_and_shorter_ones_than_an_ngram_to_their_equals() -> None:
    similar = SimilarDocuments(CONFIG)
    for number in range(2):
        assert similar.add_unless_similar(number, SIGNATURES.of("?! ...")) is None
    assert similar.add_unless_similar(2, SIGNATURES.of("three short words")) is None
    assert similar.add_unless_similar(3, SIGNATURES.of("three other words")) is None
    assert similar.add_unless_similar(4, SIGNATURES.of("Three short words.")) == (2, 1.0)


def test_too_few_hash_functions_are_refused_with_a_number_that_works() -> None:
    with pytest.raises(ConfigError, match=r"data\.near_duplicates\.num_hashes=1.*\n.*num_hashes=128 works"):
        SimilarDocuments(NearDuplicatesConfig(num_hashes=1))
