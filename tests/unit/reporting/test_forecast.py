"""The loss forecast on synthetic curves: silent on healthy ones, loud on those that leave their course."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.unit.reporting.example_run import step_record
from training.reporting.forecast import LossLaw, LossWatch, forecast

KINDS = ("constant", "cosine", "linear", "wsd")
SEEDS = range(40)


def watch(**changes: int | float | Sequence[int]) -> LossWatch:
    defaults = {"every_steps": 50, "min_steps": 200, "sigmas": 6.0, "patience_steps": 20}
    return LossWatch(**(defaults | changes))  # type: ignore[arg-type]


def rate(kind: str, step: int, num_steps: int, warmup: int) -> float:
    """Learning rate as a share of its peak."""
    share = (step - warmup) / (num_steps - warmup)
    if step < warmup:
        return (step + 1) / warmup
    if kind == "cosine":
        return 0.1 + 0.45 * (1 + math.cos(math.pi * share))
    if kind == "linear":
        return 1 - 0.9 * share
    return min(1.0, 1 - 0.95 * (share - 0.8) / 0.2) if kind == "wsd" else 1.0


def healthy(seed: int, kind: str, num_steps: int) -> list[tuple[float, float]]:
    """(loss, learning rate) by a power law of the work done, lower where the rate is; noise with memory and tails."""
    random = np.random.default_rng(seed)
    floor, height, power = random.uniform(0.3, 2.5), random.uniform(0.3, 9.0), random.uniform(0.08, 0.7)
    scale, sigma, memory = 10 ** random.uniform(0.5, 2), 10 ** random.uniform(-2.3, -0.9), random.uniform(0, 0.8)
    warmup = int(random.integers(0, 200))
    done = noise = 0.0
    found = []
    for step in range(num_steps):
        lr = rate(kind, step, num_steps, warmup)
        done += lr
        noise = memory * noise + math.sqrt(1 - memory**2) * random.normal(0, sigma)
        law = floor + height * (1 + done / scale) ** -power + 0.04 * floor * math.sqrt(lr)
        found.append((law + noise + 0.5 * sigma * random.standard_t(4), lr))
    return found


def alarms(curve: Sequence[tuple[float, float]], watching: LossWatch) -> list[tuple[int, str]]:
    """Return (step, sentence) of each alarm."""
    told = [
        (step, watching.observe(step, tokens=1000.0 * step, loss=loss, lr=lr))
        for step, (loss, lr) in enumerate(curve, 1)
    ]
    return [(step, sentence) for step, sentence in told if sentence]


@pytest.mark.parametrize("kind", KINDS)
def test_no_alarm_in_many_thousand_healthy_steps_of_any_schedule(kind: str) -> None:
    found = {seed: alarms(healthy(seed, kind, 800), watch()) for seed in SEEDS}
    assert {seed: told for seed, told in found.items() if told} == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_turns_and_rises_is_told_once(kind: str, seed: int) -> None:
    curve = healthy(seed, kind, 900)
    height = max(0.5, 20 * float(np.std([loss for loss, _ in curve[400:500]])))
    diverging = [(loss + height * max(0, step - 500) / 100, lr) for step, (loss, lr) in enumerate(curve)]
    [(step, sentence)] = alarms(diverging, watch())
    assert 520 <= step <= 700
    assert sentence.startswith("the loss of the last 20 steps, ")
    assert f"at step {step}, at most " in sentence


@pytest.mark.parametrize("seed", range(10))
def test_a_spike_that_returns_before_patience_ends_is_none(seed: int) -> None:
    curve = healthy(seed, "cosine", 700)
    spiked = [(loss + 50.0 * (400 <= step < 419), lr) for step, (loss, lr) in enumerate(curve)]
    assert alarms(spiked, watch()) == []
    longer = [(loss + 50.0 * (400 <= step < 420), lr) for step, (loss, lr) in enumerate(curve)]
    assert [step for step, _ in alarms(longer, watch())] == [420]


def test_after_it_has_come_back_a_second_departure_is_told_again() -> None:
    curve = healthy(1, "constant", 1200)
    twice = [(loss + 50.0 * (300 <= step < 500 or 800 <= step < 900), lr) for step, (loss, lr) in enumerate(curve)]
    assert [step for step, _ in alarms(twice, watch())] == [320, 820]
    at_once = [(loss + 50.0 * (300 <= step < 500 and step % 100 < 90), lr) for step, (loss, lr) in enumerate(curve)]
    assert [step for step, _ in alarms(at_once, watch())] == [320], "ten steps in the band are no return"


def test_a_loss_that_falls_faster_than_the_law_is_no_alarm() -> None:
    curve = healthy(2, "constant", 800)
    assert alarms([(loss - 0.3 * (step > 400), lr) for step, (loss, lr) in enumerate(curve)], watch()) == []


def test_new_data_and_a_higher_learning_rate_begin_anew() -> None:
    curve = healthy(3, "constant", 900)
    jump = [(loss + 5.0 * (step >= 450), lr) for step, (loss, lr) in enumerate(curve)]
    assert len(alarms(jump, watch())) == 1
    assert alarms(jump, watch(new_data_steps=[451])) == []
    assert alarms([(loss, lr * (2 if step >= 450 else 1)) for step, (loss, lr) in enumerate(jump)], watch()) == []


def test_steps_that_are_not_finite_tell_nothing() -> None:
    curve = [(math.nan if step % 3 == 0 else loss, lr) for step, (loss, lr) in enumerate(healthy(4, "wsd", 800))]
    assert alarms(curve, watch()) == []


@pytest.mark.parametrize("law", [lambda t: 1.7 + 3.0 * t**-0.3, lambda t: 2.0 + 0.5 * t**-0.1, lambda _t: 1.0])
def test_a_law_is_found_again_and_its_band_holds_what_comes(law: Callable[[float], float]) -> None:
    random = np.random.default_rng(0)
    steps = [step_record(step, loss=law(step / 10) + random.normal(0, 0.01)) for step in range(20, 1500)]
    here = forecast(steps, at_tokens=1500 * 2048, tokens_before=0, sigmas=3.0)
    ahead = forecast(steps, at_tokens=6000 * 2048, tokens_before=0, sigmas=3.0)
    assert here is not None
    assert ahead is not None
    assert here.loss == pytest.approx(law(150), abs=0.01)
    assert here.low < law(150) < here.high
    assert here.high - here.low < 0.1, "about six deviations"
    assert ahead.low < law(600) < ahead.high
    assert ahead.high - ahead.low > here.high - here.low


def test_there_is_no_forecast_from_a_few_steps_or_from_warm_up() -> None:
    steps = [step_record(step) for step in range(1, 100)]
    assert forecast([], at_tokens=1e6, tokens_before=0, sigmas=6.0) is None
    assert forecast(steps[:40], at_tokens=1e6, tokens_before=0, sigmas=6.0) is None
    assert forecast(steps, at_tokens=1e6, tokens_before=0, sigmas=6.0) is not None
    assert forecast(steps, at_tokens=1e6, tokens_before=0, sigmas=6.0, min_steps=95) is None, "10 steps warm up"


def test_outliers_do_not_bend_the_law() -> None:
    tokens = np.arange(1.0, 2001.0)
    losses = 2.0 + 3.0 * tokens**-0.4
    spoiled = losses + 100.0 * (np.arange(2000) % 97 == 0)
    laws = [LossLaw(list(tokens), list(values), sigmas=6.0) for values in (losses, spoiled)]
    assert laws[1].at(2500.0).loss == pytest.approx(laws[0].at(2500.0).loss, abs=1e-3)
