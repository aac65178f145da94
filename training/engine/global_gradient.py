"""The gradient as one vector over all pipeline stages: tied weights, norm, clipping, and throwing it away."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from training.engine.deepspeed_private import Gradient, TrainingState
from training.engine.process_group import ProcessGroup, my_group
from training.parallel.layout import Layout

CLIP_EPSILON = 1e-6
"""Added to the norm before dividing, as torch.nn.utils.clip_grad_norm_ does."""


class GlobalGradient:
    """Works on the reduced gradients between the last backward and the optimizers' step; its methods are collective.

    A tied weight has a copy on the first and on the last pipeline stage, each with a part of the gradient. ZeRO cuts
    both copies alike (training/engine/optimizer.py), so ranks with the same shard hold the same range of both: they
    add them up, and the copies, updated alike, stay bitwise equal.
    """

    def __init__(
        self,
        states: Sequence[TrainingState],
        processes: ProcessGroup,
        *,
        tied: bool,
        layout: Layout,
        clip_norm: float,
    ) -> None:
        self._states = states
        self._processes = processes
        self._clip_norm = clip_norm
        self._tied_group: dist.ProcessGroup | None = None
        if tied:
            pipelines = [layout.pipeline_group(shard) for shard in range(layout.num_shards)]
            self._tied_group = my_group([(ranks[0], ranks[-1]) for ranks in pipelines], rank=processes.rank)

    def reduce(
        self, more: list[float], note: Callable[[Iterable[tuple[str, Tensor]]], None] | None = None
    ) -> tuple[float, list[float]]:
        """Complete the gradients and clip them by their global norm.

        Args:
            more: numbers to be summed over all ranks in the same collective.
            note: called with the parts of the complete gradient that this rank counts, by parameter, before clipping.

        Returns:
            the global L2 norm before clipping (NaN or Inf if any part is; nothing is clipped then); the sums.
        """
        gradients = self._gradients()
        self._add_up_tied(gradients)
        counted = [gradient for gradient in gradients if gradient.is_owner and gradient.values.numel()]
        if note is not None:
            note((gradient.parameter, gradient.values) for gradient in counted)
        owned = [gradient.values for gradient in counted]
        square = torch.stack(torch._foreach_norm(owned)).double().square().sum().item() if owned else 0.0
        total, *sums = self._processes.sum([square, *more])
        norm = math.sqrt(total) if total >= 0 else math.nan
        if math.isfinite(norm) and 0 < self._clip_norm < norm:
            held = [gradient.values for gradient in gradients]
            if held:  # a rank of very many may hold nothing but padding, and torch takes no empty list
                torch._foreach_mul_(held, self._clip_norm / (norm + CLIP_EPSILON))
        return norm, sums

    def void(self) -> None:
        """Make every rank's gradient NaN: DeepSpeed's optimizers then skip the step and clear up, all alike."""
        for gradient in self._gradients():
            gradient.values.fill_(math.nan)

    def values(self) -> list[Tensor]:
        """Return this rank's parts that hold anything; after `reduce`."""
        return [gradient.values for gradient in self._gradients() if gradient.values.numel()]

    def _gradients(self) -> list[Gradient]:
        return [gradient for state in self._states for gradient in state.gradients()]

    def _add_up_tied(self, gradients: Sequence[Gradient]) -> None:
        if self._tied_group is None:
            return
        for gradient in gradients:
            if gradient.is_tied:
                dist.all_reduce(gradient.values, group=self._tied_group)
