"""Layers that are sharded one by one as they are built, so that no rank ever holds a whole model."""

from dataclasses import replace

import deepspeed
import torch
from torch import nn

from training.config.deepspeed_config import deepspeed_config
from training.config.schema import Precision, RunConfig
from training.engine.deepspeed_private import PipelineStagePlace
from training.models.decoder import LayerDefinition
from training.models.prediction import decoder_block_of


def sharded_layers(
    layers: list[LayerDefinition],
    config: RunConfig,
    training_stage: str,
    place: PipelineStagePlace | None = None,
    experts_place: PipelineStagePlace | None = None,
) -> list[LayerDefinition]:
    """Return the same layers for ZeRO-3: what they build holds this rank's shards of the weights alone.

    Host memory while they are built is the shards so far and one whole layer. Building is collective over the replicas
    of the pipeline stage, which must build the same layers in the same order: each weight is broadcast once.

    `deepspeed.initialize` leaves weights alone that are shards already (0.19.8, runtime/zero/parameter_offload.py,
    `_convert_to_zero_parameters`). It does not cast them either (runtime/engine.py, `_cast_module_mixed_precision`),
    and neither does `zero.Init` to a finished module; so that is done here, before a weight is cut: the master weights
    are the rounded ones, as without sharding.

    Args:
        layers: of the whole model or a part of it.
        config: the run.
        training_stage: its training stage.
        place: the ranks to shard over; None for all of them.
        experts_place: those to shard experts over where they are spread over ranks.
    """

    def cut(module: nn.Module, place: PipelineStagePlace | None) -> None:
        if config.precision is Precision.bf16:
            for parameter in module.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        group = None if place is None else place.data_parallel_group
        settings = deepspeed_config(config, training_stage, num_shards=None if place is None else place.num_shards)
        deepspeed.zero.Init(module=module, data_parallel_group=group, config_dict_or_path=settings, mpu=place)

    def sharded(layer: LayerDefinition) -> LayerDefinition:
        def build() -> nn.Module:
            module = layer.build()
            cut(module, place)
            block = decoder_block_of(module)
            if block is not None and block.experts_apart is not None:
                cut(block.experts_apart, experts_place)
            return module

        return replace(layer, build=build, needs=sharded(layer.needs) if layer.needs else None)

    return [sharded(layer) for layer in layers]
