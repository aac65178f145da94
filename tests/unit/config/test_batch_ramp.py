"""Batch ramps: sizes by place in the order of batches, budgets counted in them, and refusals whose remedies work."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.batch_sizes import BatchRampStep, BatchSizes, batch_sizes
from training.config.load import compose
from training.config.schema import RunConfig
from training.errors import ConfigError

SMOKE = "experiment=smoke"
RAMP = "stages.pretrain.batch_ramp"


def ramp(*steps: tuple[int, int]) -> str:
    shown = [f"{{until_tokens:{tokens},global_batch_sequences:{sequences}}}" for tokens, sequences in steps]
    return f"{RAMP}=[{','.join(shown)}]"


RAMPS = st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 9)), max_size=4)
SIZES = st.builds(
    lambda steps, full, length: batch_sizes(
        [BatchRampStep(until_tokens=tokens, global_batch_sequences=sequences) for tokens, sequences in steps],
        global_batch_sequences=full,
        sequence_length=length,
    ),
    RAMPS,
    st.integers(1, 12),
    st.integers(1, 20),
)


def test_without_a_ramp_all_batches_are_alike() -> None:
    sizes = batch_sizes([], global_batch_sequences=8, sequence_length=64)
    assert [sizes.sequences(batch) for batch in range(4)] == [8] * 4
    assert [sizes.num_batches(tokens) for tokens in (1, 512, 513, 1024)] == [1, 1, 2, 2]


def test_a_step_of_the_ramp_lasts_until_it_has_its_tokens() -> None:
    steps = [BatchRampStep(until_tokens=1000, global_batch_sequences=4)]
    steps.append(BatchRampStep(until_tokens=2048, global_batch_sequences=8))
    sizes = batch_sizes(steps, global_batch_sequences=16, sequence_length=64)
    assert [sizes.sequences(batch) for batch in range(8)] == [4, 4, 4, 4, 8, 8, 16, 16]
    assert sizes.lengths(7) == [(4, 4), (2, 8), (1, 16)]
    assert sizes.lengths(3) == [(3, 4)]


@given(SIZES, st.integers(0, 400))
def test_a_batch_begins_where_the_one_before_ended(sizes: BatchSizes, batch: int) -> None:
    assert sizes.samples_before(0) == 0
    assert sizes.samples_before(batch + 1) - sizes.samples_before(batch) == sizes.sequences(batch)


@given(SIZES, st.integers(1, 10_000))
def test_a_budget_takes_the_fewest_batches_that_have_its_tokens(sizes: BatchSizes, tokens: int) -> None:
    number = sizes.num_batches(tokens)
    assert sizes.tokens_before(number - 1) < tokens <= sizes.tokens_before(number)
    assert sum(count for count, _ in sizes.lengths(number)) == number
    assert sum(count * sequences for count, sequences in sizes.lengths(number)) == sizes.samples_before(number)


@given(RAMPS, st.integers(1, 20), st.integers(1, 2000))
def test_steps_of_the_ramp_reach_their_tokens_by_less_than_a_batch(
    steps: list[tuple[int, int]], length: int, full: int
) -> None:
    given_steps = [BatchRampStep(until_tokens=tokens, global_batch_sequences=n) for tokens, n in sorted(steps)]
    sizes = batch_sizes(given_steps, global_batch_sequences=full, sequence_length=length)
    for phase, following in pairwise(sizes.phases):
        reached = following.first_sample * length
        until = max(step.until_tokens for step in given_steps if step.until_tokens <= reached)
        assert until <= reached < until + phase.sequences * length


def test_steps_and_tokens_of_a_run_follow_the_ramp() -> None:
    config = compose([SMOKE, ramp((1024, 4))])
    assert config.num_steps("pretrain") == 4 + 7
    assert config.num_tokens("pretrain") == 4608
    assert config.first_step("anneal") == 11
    assert config.micro_batch_counts("pretrain") == [1, 2]


REFUSED = [
    ([ramp((1024, 6))], f"{RAMP}.0.global_batch_sequences", "no multiple of micro_batch_sequences=2"),
    ([ramp((1024, 2), (2048, 4))], f"{RAMP}.0.global_batch_sequences", "no multiple of micro_batch_sequences=2"),
    ([ramp((1024, 8))], f"{RAMP}.0.global_batch_sequences", "up to global_batch_sequences=8"),
    ([ramp((1024, 4), (2048, 4))], f"{RAMP}.1.global_batch_sequences", "the step before has 4"),
    ([ramp((1025, 4), (1200, 6))], f"{RAMP}.1.until_tokens", "last for 1280 tokens, so it would have no batch"),
    ([ramp((4608, 4))], f"{RAMP}.0.until_tokens", "no batch of 8 would come"),
    (
        [
            *(
                "parallel@stages.pretrain.parallel=pipeline_zero3_interleaved",
                "stages.pretrain.micro_batch_sequences=1",
            ),
            *("stages.pretrain.global_batch_sequences=12", ramp((1024, 5))),
        ],
        f"{RAMP}.0.global_batch_sequences",
        "interleaved runs them in equal rounds",
    ),
]


@pytest.mark.parametrize(("overrides", "key", "reason"), REFUSED, ids=str)
def test_a_ramp_that_cannot_be_is_refused_with_a_remedy_that_works(overrides: list[str], key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([SMOKE, *overrides])
    assert caught.value.key == key
    assert reason in caught.value.reason
    remedy = caught.value.remedy.removeprefix("leave this step out: ").split(" works")[0].split(" (")[0]
    assert isinstance(compose([SMOKE, *overrides, remedy]), RunConfig)


def test_a_ramp_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        compose([SMOKE, ramp((0, 4))])
