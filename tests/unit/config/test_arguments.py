"""The command line every entry point shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.arguments import parse_arguments
from training.errors import ConfigError

SPELLINGS = [["--local_rank=3"], ["--local_rank", "3"], ["--local-rank=3"], ["--local-rank", "3"]]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=" ".join)
@given(place=st.integers(min_value=0, max_value=2))
def test_local_rank_is_dropped_in_every_spelling_wherever_it_stands(spelling: list[str], place: int) -> None:
    words = ["experiment=demo", "run.seed=1"]
    parsed = parse_arguments([*words[:place], *spelling, *words[place:]])
    assert parsed.positional == words
    assert not parsed.multirun


def test_options_are_told_from_overrides() -> None:
    parsed = parse_arguments(["-m", "run.seed=1,2", "--help", "--cfg", "job", "~stages.anneal", "+a=-1"])
    assert parsed.positional == ["run.seed=1,2", "~stages.anneal", "+a=-1"]
    assert (parsed.multirun, parsed.help, parsed.show_config) == (True, True, True)
    assert parse_arguments(["--multirun"]).multirun
    assert parse_arguments(["-h"]).help


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr=3"], "key=value"),
        (["--local_rank"], "needs a value"),
        (["--cfg"], "needs a value"),
        (["--cfg", "hydra"], "--cfg job"),
        (["--local_rankk=3"], "no such option"),
    ],
)
def test_an_unknown_option_is_refused_with_what_to_write(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_arguments(words)
