"""How each layer of the model learns in a step: norms of weights, gradient and update, the same in every layout."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from training.checkpoint.manifest import WEIGHT
from training.config.model_schema import ModelConfig
from training.engine.base import LayerNorms
from training.engine.deepspeed_private import TrainingState
from training.engine.process_group import ProcessGroup
from training.models.decoder import decoder_layers


class LayerMeter:
    """Measures a step in three calls: `note_gradients`, `note_weights` before the update, `measured` after it.

    Every rank measures what it owns: its parts of the fp32 weights and of the reduced gradient. Padding and copies of
    tied weights are no part of that, so the sums of squares over all ranks are those of the model. It reads only, and
    holds a copy of this rank's fp32 weights from `note_weights` to `measured`: at a moment when no activation lives.
    """

    def __init__(self, model: ModelConfig, states: Sequence[TrainingState], processes: ProcessGroup) -> None:
        self._names = [layer.name for layer in decoder_layers(model, seed=0) if layer.tied_to is None]
        self._processes = processes
        owned = [fragment for state in states for fragment in state.fragments if fragment.is_owner]
        self._weights = [(fragment.parameter, fragment.tensors[WEIGHT]) for fragment in owned]
        self._layer_of: dict[str, int] = {}
        self._gradient_squares: list[float] = []
        self._weight_squares: list[float] = []
        self._before: list[Tensor] = []

    def note_gradients(self, gradients: Iterable[tuple[str, Tensor]]) -> None:
        """Note this rank's parts of the reduced gradient before clipping, each by its canonical parameter name."""
        self._gradient_squares = self._squares(gradients)

    def note_weights(self) -> None:
        """Note this rank's weights; the next thing to happen to them is the update."""
        self._weight_squares = self._squares(self._weights)
        self._before = [values.clone() for _, values in self._weights]

    def measured(self) -> LayerNorms:
        """Return the norms of the step whose update has just been made, or left out; collective."""
        before, self._before = self._before, []
        if before:  # a rank of very many may hold nothing but padding
            torch._foreach_sub_(before, [values for _, values in self._weights])
        names = [name for name, _ in self._weights]
        update_squares = self._squares(zip(names, before, strict=True))
        sums = self._processes.sum([*self._weight_squares, *self._gradient_squares, *update_squares])
        num_layers = len(self._names)
        weights, gradients, updates = (
            tuple(map(math.sqrt, sums[start : start + num_layers])) for start in range(0, 3 * num_layers, num_layers)
        )
        return LayerNorms(names=tuple(self._names), weight_norms=weights, grad_norms=gradients, update_norms=updates)

    def _squares(self, values: Iterable[tuple[str, Tensor]]) -> list[float]:
        """Return the sum of squares of each layer's values on this rank."""
        held = [(self._layer(name), tensor) for name, tensor in values if tensor.numel()]
        squares = [0.0] * len(self._names)
        if held:
            norms = torch.stack(torch._foreach_norm([tensor for _, tensor in held])).double()
            for (layer, _), square in zip(held, norms.square().tolist(), strict=True):
                squares[layer] += square
        return squares

    def _layer(self, parameter: str) -> int:
        if parameter not in self._layer_of:
            [place] = [place for place, name in enumerate(self._names) if parameter.startswith(f"{name}.")]
            self._layer_of[parameter] = place
        return self._layer_of[parameter]
