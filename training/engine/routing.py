"""The routers of a rank between steps: what they did is summed over all ranks, and their biases are moved by it."""

import math
from collections.abc import Iterable, Sequence

import torch

from training.checkpoint.manifest import WEIGHT
from training.checkpoint.snapshot import Fragment
from training.config.model_schema import ModelConfig
from training.models.decoder import blocks_with_experts
from training.models.router import Router
from training.models.routing_log import RoutingLog, RoutingResult
from training.models.shapes import router_bias_name


class Routing:
    """Keeps the log of a step, and balances the experts without a loss (arXiv:2408.15664, algorithm 1).

    Every rank knows all blocks' loads of the global batch after a step, so all move their biases alike.

    Args:
        model: a dense one makes every method do nothing.
        routers: of this rank's blocks, by the block's name.
        device: where they run: biases are no parameters and are moved here.
        is_owner: whether this rank writes the biases of its pipeline stage into checkpoints.
    """

    def __init__(
        self, model: ModelConfig, routers: Iterable[tuple[str, Router]], *, device: torch.device, is_owner: bool
    ) -> None:
        self._routers = dict(routers)
        self._is_owner = is_owner
        self._places = {name: place for place, name in enumerate(blocks_with_experts(model))}
        experts = model.experts
        self.log: RoutingLog | None = None
        if experts is not None:
            self.log = RoutingLog(
                self._places, num_experts=experts.num_experts, experts_per_token=experts.experts_per_token
            )
            self._rate = experts.bias_update_rate
        for router in self._routers.values():
            if router.bias_E is not None:
                router.bias_E = router.bias_E.to(device)

    def begin(self, gradient_factor: float) -> None:
        """Start a step's forwards; `gradient_factor` is what the gradient of a summed loss is multiplied by."""
        if self.log is not None:
            self.log.begin(gradient_factor)

    def sums(self) -> list[float]:
        """Return this rank's numbers of the step, to be summed over all ranks; [] of a dense model."""
        return [] if self.log is None else self.log.sums()

    def end(self, totals: Sequence[float], *, num_tokens: int, is_used: bool) -> RoutingResult | None:
        """Return what the routers did, and move the biases if the step was used; None of a dense model.

        Args:
            totals: `sums` summed over all ranks.
            num_tokens: tokens of the global batch, padding too.
            is_used: whether weights were updated.
        """
        if self.log is None or not all(map(math.isfinite, totals)):
            return None
        result = self.log.result(totals, num_tokens)
        if is_used:
            for name, router in self._routers.items():
                if router.bias_E is not None:
                    load_E = torch.tensor(result.loads[self._places[name]], dtype=torch.float64)
                    step_E = self._rate * torch.sign(load_E.mean() - load_E)
                    router.bias_E += step_E.to(router.bias_E)
        return result

    def fragments(self) -> list[Fragment]:
        """Return the biases as parts of a checkpoint; they have no moments."""
        return [
            Fragment(
                parameter=router_bias_name(name),
                shape=tuple(router.bias_E.shape),
                start=0,
                tensors={WEIGHT: router.bias_E},
                is_owner=self._is_owner,
            )
            for name, router in self._routers.items()
            if router.bias_E is not None
        ]
