import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.gates import decide
from training.config.schema import GateConfig

numbers = st.floats(0, 100)
gates = st.builds(
    GateConfig,
    max_bits_per_byte=st.none() | numbers,
    max_increase_over_previous=st.none() | st.floats(-1, 10),
)
previous_metrics = st.none() | st.fixed_dictionaries({"bits_per_byte": numbers})


def test_a_met_threshold_promotes_and_tells_both_numbers() -> None:
    decision = decide(GateConfig(max_bits_per_byte=2.6), {"bits_per_byte": 2.134}, None)
    assert decision.promoted
    assert decision.decision == "promote"
    assert decision.reasons == ("held-out bits per byte 2.134 <= 2.6 (threshold): met",)


def test_a_missed_threshold_blocks_and_tells_both_numbers() -> None:
    decision = decide(GateConfig(max_bits_per_byte=2.6), {"bits_per_byte": 2.71}, None)
    assert decision.decision == "block"
    assert decision.reasons == ("held-out bits per byte 2.71 > 2.6 (threshold): not met",)


def test_numbers_that_differ_in_the_last_digit_are_shown_apart() -> None:
    [reason] = decide(GateConfig(max_bits_per_byte=2.6), {"bits_per_byte": 2.6000001}, None).reasons
    assert "2.6000001 > 2.6 " in reason


def test_equal_to_the_limit_promotes() -> None:
    gate = GateConfig(max_bits_per_byte=2.5, max_increase_over_previous=0.0)
    assert decide(gate, {"bits_per_byte": 2.5}, {"bits_per_byte": 2.5}).promoted


def test_a_rise_over_the_previous_training_stage_blocks_and_shows_the_previous_number() -> None:
    decision = decide(GateConfig(max_increase_over_previous=0.125), {"bits_per_byte": 2.5}, {"bits_per_byte": 2.25})
    assert decision.reasons == ("held-out bits per byte 2.5 > 2.375 (previous 2.25 + 0.125 allowed): not met",)
    assert not decision.promoted


def test_every_condition_gives_one_sentence_and_all_must_be_met() -> None:
    gate = GateConfig(max_bits_per_byte=3.0, max_increase_over_previous=0.0)
    decision = decide(gate, {"bits_per_byte": 2.5}, {"bits_per_byte": 2.0})
    assert [reason.rsplit(": ", 1)[1] for reason in decision.reasons] == ["met", "not met"]
    assert not decision.promoted


@pytest.mark.parametrize("previous", [None, {}, {"bits_per_byte": math.nan}])
def test_a_missing_or_broken_previous_number_blocks_and_says_so(previous: dict | None) -> None:
    decision = decide(GateConfig(max_increase_over_previous=1.0), {"bits_per_byte": 1.0}, previous)
    assert not decision.promoted
    assert "earlier held-out bits per byte" in decision.reasons[0]


def test_a_number_that_was_not_measured_blocks_and_says_so() -> None:
    decision = decide(GateConfig(max_bits_per_byte=2.6), {}, None)
    assert not decision.promoted
    assert "was not measured" in decision.reasons[0]


def test_a_gate_without_conditions_promotes_and_says_that_nothing_was_asked() -> None:
    decision = decide(GateConfig(), {"bits_per_byte": 9.0}, None)
    assert decision.promoted
    assert "nothing was asked" in decision.reasons[0]


@given(gates, st.sampled_from([math.nan, math.inf, -math.inf]), previous_metrics)
def test_a_number_that_is_not_finite_never_promotes(gate: GateConfig, value: float, previous: dict | None) -> None:
    assert not decide(gate, {"bits_per_byte": value}, previous).promoted


@given(gates, numbers, numbers, previous_metrics)
def test_better_numbers_never_turn_promote_into_block(
    gate: GateConfig, one: float, other: float, previous: dict | None
) -> None:
    better, worse = sorted((one, other))
    if decide(gate, {"bits_per_byte": worse}, previous).promoted:
        assert decide(gate, {"bits_per_byte": better}, previous).promoted


@given(gates, numbers, previous_metrics)
def test_promoted_means_that_no_sentence_says_not_met(gate: GateConfig, value: float, previous: dict | None) -> None:
    decision = decide(gate, {"bits_per_byte": value}, previous)
    assert decision.promoted == (not any(reason.endswith("not met") for reason in decision.reasons))
