import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval.comparison import Comparison, Verdict, compare
from eval.statistics import Items
from training.errors import ConfigError, DataError

TRIALS = 1000
"""Simulated comparisons per known truth."""
CLEAR_TRIALS = 100
"""Where the truth is far from the margin."""
SLACK = 3 * math.sqrt(0.05 * 0.95 / TRIALS)
"""Three standard errors of an observed rate of 5 %."""


def answers(correct: np.ndarray) -> Items:
    return Items(
        numerators={str(i): float(value) for i, value in enumerate(correct)},
        denominators={str(i): 1.0 for i in range(len(correct))},
        higher_is_better=True,
    )


def pair(seed: int, worse_by: float, num_items: int = 300) -> tuple[Items, Items]:
    """Right answers of two models that agree on most items; the first is worse by so much in truth."""
    generator = np.random.default_rng(seed)
    kind = generator.choice(4, num_items, p=[0.5, 0.3 - worse_by, 0.1 + worse_by, 0.1])
    return answers(np.isin(kind, [0, 3])), answers(np.isin(kind, [0, 2]))


def texts(seed: int, worse_by: float, num_items: int = 60) -> tuple[Items, Items]:
    """Bits per byte of two models on documents of different lengths; lower is better."""
    generator = np.random.default_rng(seed)
    num_bytes = generator.lognormal(6.0, 0.5, num_items)
    rates = 2.0 + 0.4 * generator.standard_normal(num_items)
    ours = rates + worse_by + 0.1 * generator.standard_normal(num_items)
    found = []
    for each in (ours, rates):
        above = {str(i): float(rate * size) for i, (rate, size) in enumerate(zip(each, num_bytes, strict=True))}
        below = {str(i): float(size) for i, size in enumerate(num_bytes)}
        found.append(Items(numerators=above, denominators=below, higher_is_better=False))
    return found[0], found[1]


def one(ours: Items, partner: Items, margin: float = 0.05, **values: float) -> Comparison:
    return compare({"task": ours}, {"task": partner}, margin=margin, resamples=200, **values)  # pyright: ignore


def simulate(
    draw: Callable[[int, float], tuple[Items, Items]], worse_by: float, margin: float, trials: int = TRIALS
) -> Counter[Verdict]:
    return Counter(
        compare({"t": ours}, {"t": partner}, margin=margin, resamples=1).verdict
        for ours, partner in (draw(seed, worse_by) for seed in range(trials))
    )


@pytest.mark.parametrize(("draw", "margin"), [(pair, 0.05), (texts, 0.03)])
def test_of_1000_comparisons_at_most_the_stated_share_is_wrong(
    draw: Callable[[int, float], tuple[Items, Items]], margin: float
) -> None:
    """The truth lies a hair beyond the margin, then a hair within: the hardest cases; then clearly on either side."""
    beyond = simulate(draw, margin + 1e-9, margin)
    assert beyond[Verdict.yes] / TRIALS <= 0.05 + SLACK
    within = simulate(draw, margin - 1e-9, margin)
    assert within[Verdict.no] / TRIALS <= 0.05 + SLACK
    equal = simulate(draw, 0.0, margin, CLEAR_TRIALS)
    assert equal[Verdict.no] / CLEAR_TRIALS <= 0.01
    far_worse = simulate(draw, margin + 0.2, margin, CLEAR_TRIALS)
    assert far_worse[Verdict.yes] == 0
    assert far_worse[Verdict.no] / CLEAR_TRIALS >= 0.95, "it does decide where the difference is large"
    assert simulate(draw, -0.1, margin, CLEAR_TRIALS)[Verdict.yes] / CLEAR_TRIALS >= 0.95


def test_of_500_comparisons_of_four_tasks_at_most_the_stated_share_has_a_wrong_task() -> None:
    """Two tasks lie a hair beyond the margin and two a hair within."""
    wrong_yes, wrong_no, wrong_overall = 0, 0, 0
    trials, slack = 500, SLACK * math.sqrt(2)
    for seed in range(trials):
        truths = {"a": 0.05 + 1e-9, "b": 0.05 + 1e-9, "c": 0.05 - 1e-9, "d": 0.05 - 1e-9}
        drawn = {task: pair(4 * seed + i, worse) for i, (task, worse) in enumerate(truths.items())}
        found = compare(
            {task: ours for task, (ours, _) in drawn.items()},
            {task: partner for task, (_, partner) in drawn.items()},
            margin=0.05,
            resamples=1,
        )
        wrong_yes += any(found.tasks[task].verdict is Verdict.yes for task in "ab")
        wrong_no += any(found.tasks[task].verdict is Verdict.no for task in "cd")
        wrong_overall += found.verdict is Verdict.yes
    assert wrong_yes / trials <= 0.05 + slack
    assert wrong_no / trials <= 0.05 + slack
    assert wrong_overall / trials <= 0.01


def test_the_number_of_items_more_that_it_names_does_decide() -> None:
    """With so many in all, drawn anew, a half of comparisons or more is decided: a bound is reached at its middle."""
    ours, partner = pair(1, 0.0, num_items=60)
    unclear = one(ours, partner).tasks["task"]
    assert unclear.verdict is Verdict.not_enough_data
    assert unclear.items_more is not None
    # The sample's own rates as the truth: only then is the number meant to be right.
    both = [(ours.numerators[i], partner.numerators[i]) for i in ours.numerators]
    decided = 0
    for seed in range(100):
        drawn = np.random.default_rng(seed).integers(len(both), size=60 + unclear.items_more)
        again = one(answers(np.array([both[i][0] for i in drawn])), answers(np.array([both[i][1] for i in drawn])))
        decided += again.verdict is not Verdict.not_enough_data
    assert decided >= 45


def test_better_is_on_par_whichever_way_better_lies() -> None:
    ours, partner = texts(3, -0.3)
    assert one(ours, partner).verdict is Verdict.yes
    assert one(partner, ours).verdict is Verdict.no
    assert one(ours, partner).tasks["task"].advantage.value > 0.2


def test_equal_results_of_a_share_need_items_too() -> None:
    few, many = answers(np.ones(10)), answers(np.ones(1000))
    assert one(few, few).verdict is Verdict.not_enough_data
    assert one(many, many).verdict is Verdict.yes
    assert one(many, many).tasks["task"].mcnemar_p == 1.0


def test_everything_is_told() -> None:
    ours, partner = pair(5, 0.0)
    found = one(ours, partner).tasks["task"]
    gained = sum(ours.numerators[i] > partner.numerators[i] for i in ours.numerators)
    lost = sum(ours.numerators[i] < partner.numerators[i] for i in ours.numerators)
    assert found.mcnemar_p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert found.advantage.value == pytest.approx((gained - lost) / 300)
    low, high = found.bootstrap
    assert found.advantage.low <= low <= found.advantage.value <= high <= found.advantage.high
    assert found.reason.startswith("task: ")
    assert "at least -0.05 is on par: " in found.reason
    assert texts(1, 0.0)[0].is_share is False
    assert one(*texts(1, 0.0)).tasks["task"].mcnemar_p is None


def test_the_bootstrap_is_the_same_every_time() -> None:
    assert one(*texts(1, 0.0)) == one(*texts(1, 0.0))
    assert one(*texts(1, 0.0), seed=1).tasks["task"].bootstrap != one(*texts(1, 0.0)).tasks["task"].bootstrap


def test_the_bootstrap_interval_is_scipys() -> None:
    ours, partner = texts(7, 0.02)
    found = compare({"t": ours}, {"t": partner}, margin=0.0, resamples=20_000).tasks["t"].bootstrap
    above = np.array([partner.numerators[i] - ours.numerators[i] for i in ours.numerators])
    below = np.array(list(ours.denominators.values()))
    expected = stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        confidence_level=0.9,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.002)


def test_a_no_or_an_open_question_in_one_task_is_one_overall() -> None:
    good, bad, few = pair(1, -0.1), pair(2, 0.28), pair(3, 0.0, num_items=20)

    def verdict(*drawn: tuple[Items, Items]) -> Comparison:
        return compare(
            {str(i): ours for i, (ours, _) in enumerate(drawn)},
            {str(i): partner for i, (_, partner) in enumerate(drawn)},
            margin=0.05,
            resamples=10,
        )

    assert verdict(good, good).verdict is Verdict.yes
    assert verdict(good, bad, few).verdict is Verdict.no
    assert verdict(good, bad, few).reason == "on par with the partner's model: no, because of 1"
    unclear = verdict(good, few)
    assert unclear.verdict is Verdict.not_enough_data
    assert unclear.reason.startswith("on par with the partner's model: not enough data: about ")


def test_what_only_one_has_is_named_and_not_counted() -> None:
    ours, partner = pair(1, 0.0)
    some = partner.of([str(i) for i in range(200)])
    found = compare({"t": ours, "x": ours}, {"t": some, "y": some}, margin=0.05, resamples=10)
    assert found.not_compared == ("x", "y")
    assert (found.tasks["t"].advantage.num_items, found.tasks["t"].unpaired_items) == (200, 100)


@settings(max_examples=30, deadline=None)
@given(st.permutations([str(i) for i in range(40)]), st.integers(0, 100))
def test_the_order_of_items_changes_no_verdict(order: list[str], seed: int) -> None:
    ours, partner = pair(seed, 0.0, num_items=40)
    straight, mixed = one(ours, partner).tasks["task"], one(ours, partner.of(order)).tasks["task"]
    assert (straight.verdict, straight.advantage, straight.bootstrap) == (
        mixed.verdict,
        mixed.advantage,
        mixed.bootstrap,
    )


def test_what_cannot_be_compared_is_refused_with_a_remedy() -> None:
    ours, partner = texts(1, 0.0)
    other_ids = Items(numerators={"z": 1.0}, denominators={"z": 1.0}, higher_is_better=False)
    longer = Items(
        numerators=partner.numerators, denominators={**partner.denominators, "3": 1.0}, higher_is_better=False
    )
    broken = Items(
        numerators={**partner.numerators, "3": math.nan}, denominators=partner.denominators, higher_is_better=False
    )
    for wrong, words in [
        (other_ids, "none is in both"),
        (longer, "item 3 weighs .* not the same item"),
        (broken, "item 3 of the second model is nan"),
        (pair(1, 0.0)[0], "not the same metric"),
    ]:
        with pytest.raises(DataError, match=words):
            one(ours, wrong)
    with pytest.raises(DataError, match="results of a, the other of b: no task in common"):
        compare({"a": ours}, {"b": partner}, margin=0.1)
    for margin in (-0.1, math.nan, {"other": 0.1}):
        with pytest.raises(ConfigError, match=r"margin\.t="):
            compare({"t": ours}, {"t": partner}, margin=margin)
    with pytest.raises(ConfigError, match="confidence"):
        one(ours, partner, confidence=1.0)
