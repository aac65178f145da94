"""DeepSpeed's PipelineModule over our own list of layers, cut where we say (0.19.8, runtime/pipe/module.py).

The private parts of it that are replaced here are listed with the others in
tests/unit/engine/test_deepspeed_private.py.
"""

from collections.abc import Iterator
from typing import Any

from deepspeed.runtime.pipe.module import LayerSpec, PipelineModule, TiedLayerSpec
from torch import nn

from training.models.decoder import LayerDefinition
from training.models.experts import MixtureOfExperts
from training.models.layers import DecoderBlock
from training.models.router import Router


class ManualPipelineModule(PipelineModule):
    """A PipelineModule cut where we say, from our own list of layers.

    `partition_method` cannot take a partition (runtime/pipe/module.py, `_partition_layers`), and its "parameters"
    method builds every layer on every rank to count it.
    """

    def __init__(self, layers: list[LayerDefinition], parts: list[range], **kwargs: Any) -> None:
        self._ranges = parts
        self._names = [layer.tied_to or layer.name for layer in layers]
        tied = {layer.tied_to for layer in layers if layer.tied_to}
        specs = [_TiedSpec(layer) if (layer.tied_to or layer.name) in tied else _Spec(layer) for layer in layers]
        super().__init__(specs, num_stages=len(parts), **kwargs)

    def _partition_layers(self, method: str = "manual") -> None:
        self.parts = [self._ranges[0].start, *[part.stop for part in self._ranges]]
        mine = self._ranges[self._topo.get_coord(self.global_rank).pipe]
        self._set_bounds(start=mine.start, stop=mine.stop)

    def canonical_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (canonical name, parameter) of this pipeline stage's layers.

        DeepSpeed names them "<layer index>.<rest>" and "tied_modules.<key>.<rest>".
        """
        for name, parameter in self.named_parameters():
            head, _, rest = name.partition(".")
            if head == "tied_modules":
                key, _, rest = rest.partition(".")
                yield f"{key.replace('/', '.')}.{rest}", parameter
            else:
                yield f"{self._names[int(head)]}.{rest}", parameter

    def routers(self) -> Iterator[tuple[str, Router]]:
        """Yield (name of the block, its router) of this pipeline stage."""
        for module in self.modules():
            if isinstance(module, DecoderBlock) and isinstance(module.mlp, MixtureOfExperts):
                yield module.layer_name, module.mlp.gate


class _Spec(LayerSpec):
    def __init__(self, layer: LayerDefinition) -> None:
        super().__init__(nn.Module)
        self.layer = layer

    def build(self, log: bool = False) -> nn.Module:
        return self.layer.build()


class _TiedSpec(TiedLayerSpec):
    def __init__(self, layer: LayerDefinition) -> None:
        super().__init__((layer.tied_to or layer.name).replace(".", "/"), nn.Module)
        self.layer = layer

    def build(self, log: bool = False) -> nn.Module:
        return self.layer.build()
