"""What the numbers of a run's experts mean, in a sentence, and what helps."""

from collections.abc import Sequence
from statistics import fmean

from training.reporting.records import ExpertsRecord, StepRecord

_LATEST_STEPS = 20
_CROWDED = 3.0
"""An expert with so many times the mean load: a block then waits for one expert, or one rank."""
_UNDECIDED, _COLLAPSED = 0.98, 0.2
"""Entropy of scores as a share of even ones: above, a router hardly tells tokens apart; below, it knows one answer."""


_MOST_NAMED = 4


def expert_health(steps: Sequence[StepRecord], loads: ExpertsRecord | None = None) -> str:
    """Return how the experts were in the latest steps that have numbers of them, and advice; "" of a dense model.

    Args:
        steps: each step once, in order.
        loads: the latest record of every expert's load: it names the dead and the crowded ones.
    """
    latest = [step.experts for step in steps if step.experts][-_LATEST_STEPS:]
    if not latest:
        return ""
    means = {name: fmean(numbers[name] for numbers in latest) for name in latest[-1]}
    block = int(latest[-1]["worst_block"])
    found = (
        f"experts, mean of the last {len(latest)} steps: busiest {means['worst_load']:.2f} times the mean (block "
        f"{block} of those with experts, in the last), busiest rank {means['worst_rank_load']:.2f} times, "
        f"{means['dead']:.1f} without a token, router entropy {100 * means['entropy_of_even']:.0f} % of even"
    )
    advice = [] if loads is None else _named(loads)
    if means["dead"] >= 1 or means["worst_load"] > _CROWDED:
        advice.append("raise model.experts.bias_update_rate or model.experts.balance_loss: tokens crowd on few experts")
    if means["entropy_of_even"] < _COLLAPSED:
        advice.append("model.experts.z_loss keeps logits small: the router's scores have collapsed")
    if len(steps) > 10 * _LATEST_STEPS and means["entropy_of_even"] > _UNDECIDED:
        advice.append(
            "after so many steps the router still hardly tells tokens apart: its learning rate may be too low"
        )
    return "\n    -> ".join([found, *advice])


def _named(record: ExpertsRecord) -> list[str]:
    """Return which experts had no token, and which had many times the mean; blocks and experts are counted from 0."""
    dead: list[str] = []
    crowded: list[tuple[float, str]] = []
    for block, loads in enumerate(record.loads):
        mean = fmean(loads)
        dead += [f"{block}.{expert}" for expert, load in enumerate(loads) if load == 0]
        crowded += [(load / mean, f"{block}.{expert}") for expert, load in enumerate(loads) if load > _CROWDED * mean]
    busiest = [f"{name} ({times:.1f} times the mean)" for times, name in sorted(crowded, reverse=True)]
    found = (("without a token", dead), ("crowded", busiest))
    return [f"{what} at step {record.step} (block.expert): {_listed(names)}" for what, names in found if names]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
