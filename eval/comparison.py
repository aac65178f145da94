"""Whether a model is on par with another one: verdicts from results of the same items. Pure.

"On par" is non-inferiority: better than the other, or worse by no more than a margin. Yes and no both need the
confidence that is asked for; where the items give neither, the verdict says so, and about how many more would.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from eval.statistics import Bounds, Items, difference, items_to_decide
from training.errors import ConfigError, DataError

_RESAMPLES_AT_A_TIME = 100


class Verdict(StrEnum):
    """What the items say."""

    yes = "yes"
    no = "no"
    not_enough_data = "not enough data"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskComparison:
    """One task: how much better the first model is than the second."""

    verdict: Verdict
    value: float
    """Of the first model, over the items that both have."""
    partner_value: float
    """Of the second."""
    advantage: Bounds
    """How much better the first is, whichever way better lies; each bound is wrong with `error_rate` at most."""
    margin: float
    """How much worse still counts as on par, in units of the metric."""
    error_rate: float
    """Of each bound: 1 - confidence, shared out among the tasks (Bonferroni)."""
    bootstrap: tuple[float, float]
    """Percentile interval of the advantage over resampled pairs (Efron 1979), at the same error rate on each side."""
    mcnemar_p: float | None
    """Exact two-sided p of "both are right equally often" (McNemar 1947); None unless each item is right or wrong."""
    items_more: int | None
    """About how many more items like these would decide; 0 if it is decided, None if no number would."""
    unpaired_items: int
    """Items that only one of the models has; they are in no number."""
    reason: str
    """A sentence with all numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All tasks."""

    verdict: Verdict
    """Yes if it is yes for every task, no if it is no for any."""
    reason: str
    tasks: dict[str, TaskComparison]
    not_compared: tuple[str, ...]
    """Tasks that only one of the models has."""


def compare(
    ours: Mapping[str, Items],
    partner: Mapping[str, Items],
    *,
    margin: float | Mapping[str, float],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Return whether the first model is on par with the second.

    The probability of a yes to any task in which it is in truth worse by more than the margin is at most
    1 - confidence, over all tasks together; likewise that of a no to any in which it is not. So an overall no is wrong
    at most so often, and an overall yes, which needs every task's, more rarely still.

    Args:
        ours: task (or task and metric) -> results of the first model, item by item.
        partner: likewise, of the second.
        margin: per task, or one for all, in units of the metric: how much worse still counts as on par.
        confidence: see above.
        resamples: of the bootstrap interval, which decides nothing.
        seed: of the bootstrap.

    Raises:
        ConfigError: a margin or the confidence cannot be, or a task has no margin.
        DataError: the tasks have no item in common, or they are not the same, or a result is no finite number.
    """
    tasks = sorted(ours.keys() & partner.keys())
    if not tasks:
        raise DataError(
            f"one model has results of {_names(ours)}, the other of {_names(partner)}: no task in common\n"
            "  -> evaluate both with the same suite"
        )
    if not 0.0 < confidence < 1.0:
        raise ConfigError("confidence", confidence, "must be above 0 and below 1", "confidence=0.95 is usual")
    error_rate = (1.0 - confidence) / len(tasks)
    found = {
        task: _compared(
            task,
            ours[task],
            partner[task],
            margin=_margin(task, margin),
            error_rate=error_rate,
            resamples=resamples,
            generator=np.random.default_rng([seed, index]),
        )
        for index, task in enumerate(tasks)
    }
    verdict = _overall([comparison.verdict for comparison in found.values()])
    return Comparison(
        verdict=verdict,
        reason=_overall_reason(verdict, found),
        tasks=found,
        not_compared=tuple(sorted(ours.keys() ^ partner.keys())),
    )


def _compared(
    task: str,
    ours: Items,
    partner: Items,
    *,
    margin: float,
    error_rate: float,
    resamples: int,
    generator: np.random.Generator,
) -> TaskComparison:
    ids = _paired_ids(task, ours, partner)
    ours_paired, partner_paired = ours.of(ids), partner.of(ids)
    better, other = (ours_paired, partner_paired) if ours.higher_is_better else (partner_paired, ours_paired)
    advantage = difference(better, other, error_rate=error_rate)
    above = np.array([better.numerators[item] - other.numerators[item] for item in ids])
    below = np.array([better.denominators[item] for item in ids])
    if advantage.low >= -margin:
        verdict, more = Verdict.yes, 0
    elif advantage.high < -margin:
        verdict, more = Verdict.no, 0
    else:
        needed = items_to_decide(advantage, -margin)
        verdict, more = Verdict.not_enough_data, None if needed is None else max(needed - len(ids), 1)
    is_share = ours_paired.is_share and partner_paired.is_share
    return TaskComparison(
        verdict=verdict,
        value=ours_paired.value,
        partner_value=partner_paired.value,
        advantage=advantage,
        margin=margin,
        error_rate=error_rate,
        bootstrap=_bootstrap(above, below, error_rate, resamples, generator),
        mcnemar_p=_mcnemar_p(above) if is_share else None,
        items_more=more,
        unpaired_items=len(ours.numerators.keys() ^ partner.numerators.keys()),
        reason=_reason(task, advantage, margin, verdict, more, (ours_paired.value, partner_paired.value)),
    )


def _paired_ids(task: str, ours: Items, partner: Items) -> list[str]:
    """Return the items both have, which are the same ones with a number each."""
    if ours.higher_is_better != partner.higher_is_better:
        raise DataError(f"{task}: higher is better for one model and worse for the other: not the same metric")
    ids = [item for item in ours.numerators if item in partner.numerators]
    if not ids:
        raise DataError(
            f"{task}: the models were asked different items, none is in both results\n"
            "  -> evaluate both with the same suite on the same data"
        )
    for item in ids:
        if ours.denominators[item] != partner.denominators[item]:
            raise DataError(
                f"{task}: item {item} weighs {ours.denominators[item]:g} for one model and "
                f"{partner.denominators[item]:g} for the other: not the same item\n"
                "  -> evaluate both with the same suite on the same data"
            )
        for items, whose in ((ours, "the first"), (partner, "the second")):
            if not math.isfinite(items.numerators[item]):
                raise DataError(
                    f"{task}: item {item} of {whose} model is {items.numerators[item]}, which is no result\n"
                    "  -> evaluate that model again; if it comes again, the model itself is broken"
                )
    return ids


def _bootstrap(
    above: NDArray[np.float64],
    below: NDArray[np.float64],
    error_rate: float,
    resamples: int,
    generator: np.random.Generator,
) -> tuple[float, float]:
    """Return the interval of sum(above) / sum(below) over pairs drawn with replacement."""
    ratios = []
    for first in range(0, resamples, _RESAMPLES_AT_A_TIME):
        drawn = generator.integers(len(above), size=(min(_RESAMPLES_AT_A_TIME, resamples - first), len(above)))
        ratios.append(above[drawn].sum(axis=1) / below[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [error_rate, 1.0 - error_rate])
    return float(low), float(high)


def _mcnemar_p(above: NDArray[np.float64]) -> float:
    gained, lost = int((above > 0).sum()), int((above < 0).sum())
    # Both tails of a fair coin are alike.
    return min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def _margin(task: str, margin: float | Mapping[str, float]) -> float:
    value = margin.get(task) if isinstance(margin, Mapping) else margin
    if value is None:
        raise ConfigError(f"margin.{task}", "null", "this task has no margin", "say how much worse is still on par")
    if not (math.isfinite(value) and value >= 0.0):
        raise ConfigError(f"margin.{task}", value, "must be a finite number, at least 0", "0 asks for no worse at all")
    return value


def _overall(verdicts: list[Verdict]) -> Verdict:
    return next((v for v in (Verdict.no, Verdict.not_enough_data) if v in verdicts), Verdict.yes)


def _reason(
    task: str, advantage: Bounds, margin: float, verdict: Verdict, more: int | None, values: tuple[float, float]
) -> str:
    known = (
        f"{task}: {values[0]:.4g}, the partner's {values[1]:.4g}; better by {advantage.value:.4g} "
        f"({advantage.low:.4g} to {advantage.high:.4g}, {advantage.num_items:,} items), "
        f"at least {0.0 - margin:.4g} is on par: {verdict}"
    )
    if verdict is not Verdict.not_enough_data:
        return known
    return f"{known}, " + (f"about {more:,} more items would tell" if more else "and no number of items would tell")


def _overall_reason(verdict: Verdict, tasks: Mapping[str, TaskComparison]) -> str:
    known = f"on par with the partner's model: {verdict}"
    if verdict is Verdict.yes:
        return f"{known}, in all of {_names(tasks)}"
    at_fault = {task: found for task, found in tasks.items() if found.verdict is verdict}
    if verdict is Verdict.no:
        return f"{known}, because of {_names(at_fault)}"
    more = [found.items_more for found in at_fault.values()]
    if None in more:
        return f"{known} of {_names(at_fault)}, and no number of items would tell"
    return f"{known}: about {sum(n for n in more if n):,} more items are needed, of {_names(at_fault)}"


def _names(tasks: Mapping[str, object]) -> str:
    return ", ".join(sorted(tasks)) or "nothing"
