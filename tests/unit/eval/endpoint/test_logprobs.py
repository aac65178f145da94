import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.endpoint.logprobs import EchoUnusable, echo_score, spans_of

TEXT = "Ab é😀 “c” d"


def echoed(tokens: list[str], logprobs: list[float | None], top: list[float | None] | None = None) -> dict[str, Any]:
    """An answer; `top` are the likeliest tokens' log-probabilities, by default the tokens' own."""
    tops = [None if value is None else {"x": value} for value in (top or logprobs)]
    columns = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops}
    return {"choices": [{"text": "".join(tokens), "logprobs": columns}]}


def test_the_continuations_tokens_are_summed() -> None:
    answer = echoed(
        ["The", " sky", " is", " blue", "."], [None, -1.0, -2.0, -3.0, -9.0], [None, -1.0, -1.5, -3.0, -9.0]
    )
    score = echo_score(answer, prefix="", text="The sky is blue", begin=len("The sky"))
    assert (score.logprob, score.is_greedy) == (-5.0, (False, True))


def test_a_token_across_the_boundary_belongs_to_the_continuation() -> None:
    answer = echoed(["The", " skyl", "ine"], [None, -1.0, -2.0])
    assert echo_score(answer, prefix="", text="The skyline", begin=len("The sky")).logprob == -3.0


@pytest.mark.parametrize("shown", ["<s>", ""])
def test_a_prefix_is_echoed_or_not(shown: str) -> None:
    answer = echoed([shown, "a", "b"], [None, -1.0, -2.0])
    assert echo_score(answer, prefix="<s>", text="ab", begin=0).logprob == -3.0


def test_tokens_that_a_server_puts_before_a_text_are_no_part_of_it() -> None:
    answer = echoed(["<bos>", "a", "b", "c"], [None, -1.0, -2.0, -7.0])
    assert echo_score(answer, prefix="", text="ab", begin=0).logprob == -3.0


def test_a_first_token_without_a_score_is_an_error_that_names_the_prefix() -> None:
    answer = echoed(["a", "b"], [None, -2.0])
    with pytest.raises(EchoUnusable, match="set prefix_text"):
        echo_score(answer, prefix="", text="ab", begin=0)


def test_tokens_of_another_text_are_an_error() -> None:
    with pytest.raises(EchoUnusable, match="do not make up the text 'abd'"):
        echo_score(echoed(["a", "b", "c"], [None, -1.0, -1.0]), prefix="", text="abd", begin=1)


@pytest.mark.parametrize("logprobs", [None, {}, {"tokens": ["a"], "token_logprobs": [], "top_logprobs": [None]}, []])
def test_an_answer_without_scores_is_an_error(logprobs: Any) -> None:
    with pytest.raises(EchoUnusable, match="does not score texts"):
        echo_score({"choices": [{"text": "ab", "logprobs": logprobs}]}, prefix="", text="ab", begin=1)


@given(st.data(), st.sampled_from(["", "\ufffd", "bytes:\\xf0"]))
def test_every_cut_of_a_text_is_put_together_again(data: st.DataObject, part: str) -> None:
    """Between characters anyhow; within one as servers show it: as nothing, U+FFFD or bytes."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(TEXT) - 1))) | {2, 3, 5, 6})  # "é😀" is one piece, or two
    if data.draw(st.booleans()):
        cuts.append(4)
    pieces = [TEXT[a:b] for a, b in itertools.pairwise(sorted({0, *cuts, len(TEXT)}))]
    tokens, expected, position = [], [], 0
    for piece in pieces:
        if set(piece) & set("é😀"):
            number = data.draw(st.integers(1, 4))
            tokens += [part] * number
            expected += [(3, 5)] * number  # nobody can say where within
        else:
            tokens.append(piece)
            expected.append((position, position + len(piece)))
        position += len(piece)
    tokens += data.draw(st.lists(st.just("generated"), max_size=1))
    before = data.draw(st.integers(0, 2))
    assert spans_of(["<bos>"] * before + tokens, TEXT) == [None] * before + expected
