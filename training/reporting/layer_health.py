"""What the norms of a run's layers mean, in a sentence, and what helps."""

import math
from collections.abc import Sequence
from statistics import fmean, median

from training.reporting.records import LayersRecord

_LATEST_RECORDS = 5
_VANISHING, _VIOLENT = 1e-6, 1e-1
"""Update-to-weight ratios. About 1e-3 is usual for a matrix (https://cs231n.github.io/neural-networks-3/#ratio); below
the first, updates come near the last place of fp32 weights, above the second, ten steps replace a layer."""
_DOMINANT = 0.9
"""Share of the squared gradient norm in one layer: clipping then goes by that layer alone."""
_FEWEST_LAYERS = 4
_MOST_NAMED = 3


def layer_health(records: Sequence[LayersRecord]) -> str:
    """Return how the layers learned in the latest records, and advice; "" where none was measured."""
    if not records:
        return ""
    newest = records[-1]
    broken = [name for name, norm in zip(newest.names, newest.grad_norms, strict=True) if not math.isfinite(norm)]
    if broken:
        return f"layers at step {newest.step}: the gradient is not finite in {_listed(broken)}; nothing was updated"
    latest = [record for record in records[-_LATEST_RECORDS:] if record.names == newest.names and _learned(record)]
    if not latest:
        return f"layers at step {newest.step}: nothing was updated"
    ratios = {
        name: median(values)
        for name, *values in zip(newest.names, *map(_ratios, latest), strict=True)
        if all(map(math.isfinite, values))
    }
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    shares = [fmean(values) for values in zip(*map(_gradient_shares, latest), strict=True)]
    found = (
        f"layers, last {len(latest)} records up to step {latest[-1].step}: update-to-weight ratio from "
        f"{ratios[low]:.1e} ({low}) to {ratios[high]:.1e} ({high})"
    )
    advice = []
    if vanishing := [name for name, ratio in ratios.items() if ratio < _VANISHING]:
        advice.append(f"hardly learning: {_listed(vanishing)}; the learning rate or a group's lr_ratio may be too low")
    if violent := [name for name, ratio in ratios.items() if ratio > _VIOLENT]:
        advice.append(f"changed by more than a tenth in a step: {_listed(violent)}; lower the learning rate")
    if len(shares) >= _FEWEST_LAYERS and max(shares) > _DOMINANT:
        name = newest.names[shares.index(max(shares))]
        advice.append(f"{name} has {100 * max(shares):.0f} % of the squared gradient norm: clipping goes by it alone")
    return "\n    -> ".join([found, *advice])


def _learned(record: LayersRecord) -> bool:
    """Return whether the step updated something, with numbers that can be compared."""
    norms = [*record.weight_norms, *record.grad_norms, *record.update_norms]
    return all(map(math.isfinite, norms)) and any(record.update_norms) and any(record.weight_norms)


def _ratios(record: LayersRecord) -> list[float]:
    """Return each layer's update-to-weight ratio; NaN of a layer whose weights are all 0."""
    pairs = zip(record.update_norms, record.weight_norms, strict=True)
    return [update / weight if weight else math.nan for update, weight in pairs]


def _gradient_shares(record: LayersRecord) -> list[float]:
    """Return each layer's share of the squared gradient norm."""
    total = sum(norm**2 for norm in record.grad_norms)
    return [norm**2 / total if total else 0.0 for norm in record.grad_norms]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
