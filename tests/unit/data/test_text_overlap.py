from hypothesis import given
from hypothesis import strategies as st

from training.data.text_overlap import FEWEST_WORDS, NGRAM_WORDS, OverlapSearch

WORDS = st.from_regex(r"[^\W_]{1,6}", fullmatch=True)
LONG = [f"word{i}" for i in range(40)]


def overlap(item: list[str], *texts: str) -> float:
    search = OverlapSearch({"group": {"item": item}})
    for text in texts:
        search.look_in([text])
    return search.overlaps()["group"]["item"]


@given(
    item=st.lists(WORDS, min_size=1, max_size=40),
    before=st.lists(WORDS, max_size=30),
    after=st.lists(WORDS, max_size=30),
    separator=st.sampled_from([" ", "\n", ", ", " -- ", "\t\u201c"]),
)
def test_an_item_planted_in_the_text_is_found_whole(
    item: list[str], before: list[str], after: list[str], separator: str
) -> None:
    text = separator.join([*before, *item, *after])
    assert overlap([" ".join(item)], "something else", text) == 1.0


@given(
    item=st.lists(WORDS.map(lambda word: f"a{word}"), max_size=40),
    text=st.lists(WORDS.map(lambda word: f"b{word}"), max_size=99),
)
def test_a_text_of_other_words_has_nothing_of_an_item(item: list[str], text: list[str]) -> None:
    assert overlap([" ".join(item)], " ".join(text)) == 0.0


@given(start=st.integers(0, 40), length=st.integers(1, 40))
def test_a_stretch_is_found_from_thirteen_words_on_and_counts_by_its_ngrams(start: int, length: int) -> None:
    stretch = LONG[start : start + length]
    found = max(0, len(stretch) - NGRAM_WORDS + 1) / (len(LONG) - NGRAM_WORDS + 1)
    assert overlap([" ".join(LONG)], " ".join(["x", *stretch, "y"])) == found


def test_case_punctuation_and_white_space_do_not_count() -> None:
    item = "Which of the following isn't typically included: the letter, or its reply to the client's attorneys?"
    copy = (
        "WHICH of the\nfollowing isn\u2019t typically included \u2014 the letter or its reply to the client's Attorneys"
    )
    assert overlap([item], copy) == 1.0


def test_no_stretch_goes_from_one_text_into_the_next() -> None:
    item = " ".join(LONG[:NGRAM_WORDS])
    search = OverlapSearch({"group": {"item": [item]}})
    search.look_in([" ".join(LONG[:7]), " ".join(LONG[7:20])])
    assert search.overlaps() == {"group": {"item": 0.0}}


def test_a_short_question_is_looked_for_whole_a_shorter_one_with_its_choices() -> None:
    choices = ["integrity", "availability"]
    question = " ".join(LONG[:FEWEST_WORDS])
    assert overlap([question, *choices], f"x {question} y") == 1.0
    shorter = " ".join(LONG[: FEWEST_WORDS - 1])
    assert overlap([shorter, *choices], f"x {shorter} y", "integrity", "availability") == 0.0
    assert overlap([shorter, *choices], f"x {shorter} integrity availability y") == 1.0


def test_what_all_items_of_a_benchmark_share_says_nothing_of_any() -> None:
    instructions = " ".join(LONG)
    items = {str(i): [f"{instructions} number{i}"] for i in range(11)}
    search = OverlapSearch({"group": items, "few": {"a": [instructions]}})
    search.look_in([f"{instructions} number3"])
    found = search.overlaps()
    assert found["group"] == {item: float(item == "3") for item in items}
    assert found["few"] == {"a": 1.0}


def test_items_that_are_all_alike_are_found_all_the_same() -> None:
    search = OverlapSearch({"group": {str(i): [" ".join(LONG)] for i in range(11)}})
    search.look_in([" ".join(LONG)])
    assert set(search.overlaps()["group"].values()) == {1.0}


def test_an_item_without_words_is_never_found() -> None:
    assert overlap(["?! ..."], "?! ...") == overlap([], "a") == 0.0
    assert OverlapSearch({}).overlaps() == {}
