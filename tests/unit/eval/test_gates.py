import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.gates import Verdict, decide
from eval.statistics import Items
from training.config.gate_schema import GateAction, GateCondition, GateConfig, Metric

BITS, ACCURACY = str(Metric.bits_per_byte), str(Metric.multiple_choice_accuracy)
TRIALS = 1000
"""Simulated decisions per known truth."""
SLACK = 3 * math.sqrt(0.05 * 0.95 / TRIALS)
"""Three standard errors of an observed rate of 5 %."""


def text(bits_per_byte: float, *, num_items: int = 40, spread: float = 0.2, seed: int = 0) -> Items:
    """Documents of different lengths whose true bits per byte is the one given."""
    generator = np.random.default_rng(seed)
    num_bytes = generator.lognormal(6.0, 0.5, num_items)
    rates = bits_per_byte + spread * generator.standard_normal(num_items)
    return Items(
        numerators={str(i): float(rate * size) for i, (rate, size) in enumerate(zip(rates, num_bytes, strict=True))},
        denominators={str(i): float(size) for i, size in enumerate(num_bytes)},
        higher_is_better=False,
    )


def answers(correct: np.ndarray) -> Items:
    return Items(
        numerators={str(i): float(value) for i, value in enumerate(correct)},
        denominators={str(i): 1.0 for i in range(len(correct))},
        higher_is_better=True,
    )


def at_most(limit: float, **gate: Any) -> GateConfig:
    return GateConfig(conditions={"quality": GateCondition(metric=BITS, at_most=limit)}, **gate)


def no_worse(metric: str = BITS, margin: float = 0.0, **gate: Any) -> GateConfig:
    condition = GateCondition(metric=metric, compared_with="previous", margin=margin)
    return GateConfig(conditions={"no_worse": condition}, **gate)


def test_a_met_threshold_promotes_and_tells_all_numbers() -> None:
    decision = decide(at_most(2.6), {BITS: text(2.1)}, {})
    assert (decision.decision, decision.verdict) == (GateAction.promote, Verdict.met)
    (reason,) = decision.reasons
    assert reason.startswith("bits_per_byte is 2.")
    assert reason.endswith("40 items), at most 2.6 was asked: met")
    (numbers,) = json.loads(json.dumps(decision.numbers))
    assert numbers["low"] < numbers["value"] < numbers["high"] < numbers["limit"] == 2.6
    assert numbers["num_items"] == 40


def test_a_missed_threshold_blocks() -> None:
    decision = decide(at_most(1.9), {BITS: text(2.1)}, {})
    assert (decision.decision, decision.verdict) == (GateAction.block, Verdict.missed)


@pytest.mark.parametrize("action", [GateAction.block, GateAction.ask])
def test_a_gate_that_cannot_decide_says_so_and_how_many_items_would_tell(action: GateAction) -> None:
    items = text(2.1, num_items=10)
    decision = decide(at_most(items.value + 0.01, when_unclear=action), {BITS: items}, {})
    assert (decision.decision, decision.verdict) == (action, Verdict.unclear)
    assert "cannot be decided, about " in decision.reasons[0]
    assert decision.reasons[0].endswith("more items would tell")


def test_more_items_are_asked_for_until_the_last_look() -> None:
    items = text(2.1, num_items=10)
    gate = at_most(items.value, when_unclear=GateAction.more_items, max_looks=2)
    unclear = {BITS: items}
    assert [decide(gate, unclear, {}, look=look).decision for look in (1, 2)] == [
        GateAction.more_items,
        GateAction.block,
    ]


def test_a_person_is_asked_where_the_gate_says_so() -> None:
    assert decide(at_most(1.0, when_missed=GateAction.ask), {BITS: text(2.1)}, {}).decision is GateAction.ask


def test_a_rise_over_what_came_before_blocks_and_equal_results_are_no_rise() -> None:
    before = {"previous": {BITS: text(2.0)}}
    assert decide(no_worse(), {BITS: text(2.1)}, before).decision is GateAction.block
    assert decide(no_worse(), {BITS: text(2.0)}, before).decision is GateAction.promote
    assert decide(no_worse(margin=0.2), {BITS: text(2.1)}, before).decision is GateAction.promote


def test_pairs_decide_where_two_numbers_could_not() -> None:
    """Documents differ by ten times what the models differ by."""
    old, new = text(2.0, spread=0.5), text(1.95, spread=0.5)
    assert decide(at_most(2.0), {BITS: new}, {}).verdict is Verdict.unclear
    assert decide(no_worse(), {BITS: new}, {"previous": {BITS: old}}).verdict is Verdict.met


@pytest.mark.parametrize("baselines", [{}, {"previous": {}}, {"previous": {BITS: text(math.nan)}}])
def test_a_missing_or_broken_baseline_is_missed(baselines: dict) -> None:
    decision = decide(no_worse(), {BITS: text(1.0)}, baselines)
    assert decision.decision is GateAction.block
    assert "of previous is" in decision.reasons[0]


def test_what_was_not_measured_is_missed() -> None:
    decision = decide(at_most(2.6), {}, {})
    assert decision.decision is GateAction.block
    assert "was not measured" in decision.reasons[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_promotes_and_leaves_no_nan_in_the_ledger(value: float) -> None:
    decision = decide(at_most(2.6), {BITS: text(value)}, {})
    assert decision.decision is GateAction.block
    json.dumps(decision.numbers, allow_nan=False)


def test_a_gate_without_conditions_promotes_and_says_that_nothing_was_asked() -> None:
    decision = decide(GateConfig(), {}, {})
    assert decision.decision is GateAction.promote
    assert "nothing was asked" in decision.reasons[0]


OUTCOMES = {"met": text(1.0), "missed": text(9.0), "unclear": text(2.0, num_items=8)}


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3), max_size=3), st.data())
def test_alternatives_are_and_within_or_between(pass_if: list[list[str]], data: st.DataObject) -> None:
    """Three values of logic: what is unclear decides only where the rest does not."""
    truth = {name: data.draw(st.sampled_from(sorted(OUTCOMES)), name) for name in ("a", "b", "c")}
    limits = {"met": 8.0, "missed": 0.5, "unclear": 2.0}
    gate = GateConfig(
        conditions={name: GateCondition(metric=BITS, at_most=limits[truth[name]]) for name in truth}, pass_if=pass_if
    )
    decision = decide(gate, {BITS: text(2.0, num_items=12)}, {})
    assert {finding.condition: finding.verdict for finding in decision.findings} == truth
    rank = {"missed": 0, "unclear": 1, "met": 2}
    expected = max(min(rank[truth[name]] for name in names) for names in pass_if or [["a", "b", "c"]])
    assert rank[decision.verdict] == expected
    assert (decision.decision is GateAction.promote) == (expected == 2)


def simulate(gate: GateConfig, measured, baselines=lambda seed: {}) -> Counter[Verdict]:
    return Counter(decide(gate, measured(seed), baselines(seed)).verdict for seed in range(TRIALS))


def test_of_1000_gates_on_a_threshold_at_most_the_stated_share_is_wrong() -> None:
    """The true value lies a hair on the wrong side, then a hair on the right one: the hardest cases."""
    wrong = simulate(at_most(2.0), lambda seed: {BITS: text(2.0 + 1e-9, seed=seed)})
    assert wrong[Verdict.met] / TRIALS <= 0.05 + SLACK
    right = simulate(at_most(2.0), lambda seed: {BITS: text(2.0 - 1e-9, seed=seed)})
    assert right[Verdict.missed] / TRIALS <= 0.05 + SLACK
    clear = simulate(at_most(2.0), lambda seed: {BITS: text(1.8, seed=seed)})
    assert clear[Verdict.met] / TRIALS >= 0.95, "it does decide where the difference is large"


def test_of_1000_gates_on_a_share_at_most_the_stated_share_is_wrong() -> None:
    gate = GateConfig(conditions={"enough": GateCondition(metric=ACCURACY, at_least=0.5)})

    def drawn(true_share: float):
        return lambda seed: {ACCURACY: answers(np.random.default_rng(seed).random(60) < true_share)}

    assert simulate(gate, drawn(0.5 - 1e-9))[Verdict.met] / TRIALS <= 0.05 + SLACK
    assert simulate(gate, drawn(0.5))[Verdict.missed] / TRIALS <= 0.05 + SLACK
    assert simulate(gate, drawn(0.8))[Verdict.met] / TRIALS >= 0.95


def test_of_1000_comparisons_at_most_the_stated_share_is_wrong() -> None:
    """Right answers of two models that agree on most items; the new one is worse by exactly the margin."""

    def pair(seed: int, worse_by: float) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        kind = generator.choice(4, 300, p=[0.5, 0.3 - worse_by, 0.1 + worse_by, 0.1])
        return np.isin(kind, [0, 3]), np.isin(kind, [0, 2])  # (new, old)

    def measured(worse_by: float):
        return lambda seed: {ACCURACY: answers(pair(seed, worse_by)[0])}

    def before(worse_by: float):
        return lambda seed: {"previous": {ACCURACY: answers(pair(seed, worse_by)[1])}}

    gate = no_worse(ACCURACY, margin=0.05)
    at_the_margin = simulate(gate, measured(0.05), before(0.05))
    assert at_the_margin[Verdict.met] / TRIALS <= 0.05 + SLACK
    assert at_the_margin[Verdict.missed] / TRIALS <= 0.05 + SLACK
    assert simulate(gate, measured(-0.1), before(-0.1))[Verdict.met] / TRIALS >= 0.95


def test_of_1000_gates_that_may_look_three_times_at_most_the_stated_share_promotes_wrongly() -> None:
    """Every look has the items of the one before among its own."""
    gate = at_most(2.0, when_unclear=GateAction.more_items, max_looks=3)
    wrong = 0
    for seed in range(TRIALS):
        items = text(2.0 + 1e-9, num_items=160, seed=seed)
        ids = list(items.numerators)
        looks = (decide(gate, {BITS: items.of(ids[: 20 * 2**look])}, {}, look=look) for look in (1, 2, 3))
        wrong += any(decision.decision is GateAction.promote for decision in looks)
    assert wrong / TRIALS <= 0.05 + SLACK


def test_what_could_not_be_counted_blocks_where_a_miss_would_roll_back() -> None:
    gate = no_worse(when_missed=GateAction.roll_back)
    assert decide(gate, {BITS: text(2.0)}, {}).decision is GateAction.block
    assert decide(gate, {}, {"previous": {BITS: text(2.0)}}).decision is GateAction.block
    worse = decide(gate, {BITS: text(9.0)}, {"previous": {BITS: text(2.0)}})
    assert worse.decision is GateAction.roll_back
