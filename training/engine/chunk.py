"""A contiguous part of the model in one DeepSpeedEngine, sharded by ZeRO over the replicas of its pipeline stage."""

from collections.abc import Callable
from typing import Any

import deepspeed
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn

from training.config.deepspeed_config import REDUCE_BUCKET_ELEMENTS, deepspeed_config
from training.config.schema import Regather, RunConfig
from training.engine.deepspeed_private import (
    PipelineStagePlace,
    backward,
    hold_weights,
    tie_across_pipeline_stages,
    whole_numel,
)
from training.engine.optimizer import build_optimizer
from training.engine.sharded_layers import sharded_layers
from training.models.decoder import Decoder, LayerDefinition
from training.models.layers import DecoderBlock


class Chunk:
    """Runs its layers forward and backward, one micro-batch at a time, in whatever order a schedule asks for.

    The layers are called one by one, never the module around them: DeepSpeed hangs its bookkeeping of one forward and
    backward in turn on that call (0.19.8, runtime/zero/parameter_offload.py, `_start_of_forward_hook`), which compares
    the order of modules over the whole world. Pipeline stages have different modules and would wait forever.

    Args:
        layers: the chunk's part of the model's list of layers.
        tied: names of layers whose weights another pipeline stage holds too.
        copied: names of those among them that the other pipeline stage owns.
        regather: per_step or per_microbatch.
    """

    def __init__(
        self,
        config: RunConfig,
        training_stage: str,
        layers: list[LayerDefinition],
        place: PipelineStagePlace,
        *,
        tied: frozenset[str],
        copied: frozenset[str],
        regather: Regather,
    ) -> None:
        zero_stage = config.layout_of(training_stage).zero_stage
        if zero_stage == 3:
            layers = sharded_layers(layers, config, training_stage, place)
        self.model = Decoder(layers)
        shared = {name: p for name, p in self.model.canonical_parameters() if name.rpartition(".")[0] in tied}
        for name, parameter in shared.items():
            tie_across_pipeline_stages(parameter, is_copy=name.rpartition(".")[0] in copied)
        if zero_stage == 3 and any(isinstance(layer, DecoderBlock) for layer in self.model.sequence):
            set_z3_leaf_modules(self.model, [DecoderBlock])  # one collective per block, not one per matrix
        largest_layer = max(sum(whole_numel(p) for p in layer.parameters()) for layer in self.model.sequence)
        engine, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=build_optimizer(config.optimizer, self.model.canonical_parameters(), shared=shared),
            mpu=place,
            # One reduction per layer; ZeRO-3 keeps a buffer of that size for every chunk.
            config=deepspeed_config(
                config, training_stage, reduce_bucket_elements=min(largest_layer, REDUCE_BUCKET_ELEMENTS)
            ),
        )
        self.engine: Any = engine
        self.held = zero_stage == 3 and regather is Regather.per_step
        self._arriving: dict[nn.Module, Callable[[], None]] = {}

    def begin_step(self) -> None:
        """Start to gather the weights, layer by layer, where they stay for the whole step."""
        if self.held:
            self._arriving = {layer: hold_weights(layer) for layer in dict.fromkeys(self.model.sequence)}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the hidden states (of the last chunk: the logits) for token ids or hidden states."""
        hidden = inputs
        for layer in self.model.sequence:
            arrived = self._arriving.pop(layer, None)
            if arrived is not None:
                arrived()
            hidden = layer(hidden)
        return hidden

    def backward(self, output: Tensor, gradient: Tensor | None, *, is_last: bool) -> None:
        """Run one micro-batch's backward; see `deepspeed_private.backward`."""
        backward(self.engine, output, gradient, is_last=is_last)
