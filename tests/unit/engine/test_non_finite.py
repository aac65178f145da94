"""The origin of a NaN is named by rank, pipeline stage, micro-batch and parameter; or the hardware is suspected."""

import pytest
import torch
from torch import nn

from training.engine.non_finite import NonFiniteWatch
from training.engine.process_group import ProcessGroup


def run(factors: list[float], processes: ProcessGroup) -> str:
    """Backward of one micro-batch per factor through two layers; the factor scales the gradient between them."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    named = [("first." + n, p) for n, p in first.named_parameters()]
    named += [("second." + n, p) for n, p in second.named_parameters()]
    with NonFiniteWatch(named) as watch:
        for number, factor in enumerate(factors):
            watch.begin_micro_batch(number)
            hidden = first(torch.ones(2, 3))
            hidden.register_hook(lambda gradient, factor=factor: gradient * factor)
            second(hidden).sum().backward()
    assert all(not parameter._backward_hooks for _, parameter in named), "hooks are left behind"
    return watch.report(processes, place=0)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_the_first_micro_batch_and_the_layer_nearest_to_the_cause_are_named(
    processes: ProcessGroup, factor: float
) -> None:
    culprit = run([1.0, factor, factor], processes)
    assert culprit.startswith("rank 0, pipeline stage 0, micro-batch 1, first.")


def test_a_step_that_is_finite_when_repeated_points_at_the_hardware(processes: ProcessGroup) -> None:
    assert "suspect the hardware" in run([1.0, 1.0], processes)
