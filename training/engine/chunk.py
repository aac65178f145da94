"""A contiguous part of the model in one DeepSpeedEngine, sharded by ZeRO over the replicas of its pipeline stage."""

from collections.abc import Callable, Iterable, Iterator
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
    without_barriers,
)
from training.engine.optimizer import build_optimizer
from training.engine.sharded_layers import sharded_layers
from training.models.decoder import Decoder, LayerDefinition
from training.models.layers import DecoderBlock
from training.models.prediction import PredictionBlock, decoder_block_of


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
        experts_place: the ranks that hold the same experts, where experts are spread over ranks.
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
        experts_place: PipelineStagePlace | None = None,
    ) -> None:
        zero_stage = config.layout_of(training_stage).zero_stage
        if zero_stage == 3:
            layers = sharded_layers(layers, config, training_stage, place, experts_place)
        self.model = Decoder(layers)
        shared = {name: p for name, p in self.model.canonical_parameters() if name.rpartition(".")[0] in tied}
        for name, parameter in shared.items():
            tie_across_pipeline_stages(parameter, is_copy=name.rpartition(".")[0] in copied)
        if zero_stage == 3 and any(decoder_block_of(layer) for layer in self.model.sequence):
            set_z3_leaf_modules(self.model, [DecoderBlock])  # one collective per block, not one per matrix

        def initialize(
            module: nn.Module,
            parameters: Iterable[tuple[str, nn.Parameter]],
            place: PipelineStagePlace,
            units: Iterable[nn.Module],
            **groups: Any,
        ) -> Any:
            # One reduction per layer; ZeRO-3 keeps a buffer of that size for every chunk.
            largest = max(sum(whole_numel(p) for p in unit.parameters()) for unit in units)
            with without_barriers():
                engine, *_ = deepspeed.initialize(
                    model=module,
                    optimizer=build_optimizer(config.optimizer, parameters, **groups),
                    mpu=place,
                    config=deepspeed_config(
                        config,
                        training_stage,
                        reduce_bucket_elements=min(largest, REDUCE_BUCKET_ELEMENTS),
                        num_shards=place.num_shards,
                    ),
                )
            return engine

        self.engine: Any = initialize(
            self.model, self.model.canonical_parameters(), place, self.model.sequence, shared=shared
        )
        self.experts = dict(self.model.experts_apart())
        """Canonical name -> experts that are spread over ranks: they are sharded over other ranks than the rest."""
        self.experts_engine: Any = None
        """None without any."""
        if self.experts:
            assert experts_place is not None
            apart = nn.ModuleDict({name.replace(".", "/"): module for name, module in self.experts.items()})
            self.experts_engine = initialize(apart, self._expert_parameters(), experts_place, self.experts.values())
        self.held = zero_stage == 3 and regather is Regather.per_step
        self._arriving: dict[nn.Module, Callable[[], None]] = {}

    @property
    def engines(self) -> list[Any]:
        """Its DeepSpeedEngines: that of its layers, and that of experts that are spread over ranks."""
        return [self.engine] if self.experts_engine is None else [self.engine, self.experts_engine]

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (canonical name, parameter) of all engines; of experts that are spread over ranks, the part here."""
        yield from self.model.canonical_parameters()
        yield from self._expert_parameters()

    def _expert_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, module in self.experts.items():
            yield from ((f"{name}.{matrix}", parameter) for matrix, parameter in module.named_parameters())

    def begin_step(self) -> None:
        """Start to gather the weights, layer by layer, where they stay for the whole step."""
        if self.held:
            modules = dict.fromkeys(module for layer in self.model.sequence for module in modules_of(layer))
            self._arriving = {module: hold_weights(module) for module in modules}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the hidden states (of the last chunk: the logits, or the loss) for token ids or hidden states."""
        hidden = inputs
        for layer in self.model.sequence:
            for module in modules_of(layer):
                if module in self._arriving:
                    self._arriving.pop(module)()
            hidden = layer(hidden)
        return hidden

    def backward(self, output: Tensor, gradient: Tensor | None, *, is_last: bool) -> None:
        """Run one micro-batch's backward; see `deepspeed_private.backward`."""
        backward(self.engines, output, gradient, is_last=is_last)


def modules_of(layer: nn.Module) -> list[nn.Module]:
    """Return the modules whose weights a layer needs: itself and what it calls besides its children.

    That are experts that are spread over ranks, and the embedding of a prediction block.
    """
    block = decoder_block_of(layer)
    apart = None if block is None else block.experts_apart
    shared = [layer.embedding] if isinstance(layer, PredictionBlock) else []
    return [*shared, layer, *([] if apart is None else [apart])]
