"""A real model that does not fit where it is put, and the scores of a real server of the same weights."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from eval.hugging_face_model import hugging_face_model
from tests.real_weights import SMOLLM2
from tests.unit.eval.endpoint.recorded import CONTEXT, TEXT, generations, instances, lm_of, multiple_choice

END_OF_TEXT, BEGIN = 0, 1
"""Tokens <|endoftext|> and <|im_start|>."""


def measured(lm: Any) -> tuple[Any, ...]:
    rolling = instances("loglikelihood_rolling", [(TEXT,)])
    return lm.loglikelihood(multiple_choice()), lm.loglikelihood_rolling(rolling), lm.generate_until(generations())


@pytest.fixture(scope="module")
def in_memory() -> Any:
    return hugging_face_model(SMOLLM2, prefix_token_id=END_OF_TEXT)


def test_a_model_larger_than_its_memory_gives_the_same_numbers_from_disk(in_memory: Any, tmp_path: Path) -> None:
    spread: Any = hugging_face_model(
        SMOLLM2, prefix_token_id=END_OF_TEXT, max_cpu_memory="300MB", offload_folder=tmp_path / "offload"
    )
    places = Counter(str(place) for place in spread.model.hf_device_map.values())
    assert places["disk"] >= 10, places
    assert places["cpu"] >= 1, places
    assert measured(spread) == measured(in_memory)


def test_a_servers_scores_are_those_of_the_same_weights(in_memory: Any) -> None:
    """llama.cpp puts a begin token before every text and rounds activations to 8 bits: 0.1 nats a token."""
    server = lm_of("scores")
    ((theirs, _), *_) = server.loglikelihood(multiple_choice())
    (theirs_rolling,) = server.loglikelihood_rolling(instances("loglikelihood_rolling", [(TEXT,)]))
    server.close()

    def ours(context: list[int], text: str) -> tuple[float, int]:
        ids = in_memory.tok_encode(text, add_special_tokens=False)
        ((logprob, _),) = in_memory._loglikelihood_tokens([(("", ""), context, ids)], disable_tqdm=True)
        return float(logprob), len(ids)

    logprob, _ = ours([BEGIN, *in_memory.tok_encode(CONTEXT, add_special_tokens=False)], " Paris")
    assert math.isclose(theirs, logprob, abs_tol=0.1)
    logprob, num_tokens = ours([BEGIN, END_OF_TEXT], TEXT)
    assert math.isclose(theirs_rolling, logprob, abs_tol=0.1 * num_tokens)
    print(theirs, theirs_rolling, logprob, num_tokens)
