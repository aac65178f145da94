"""The one list of layers of a decoder, and the plain module that runs it.

Every engine builds from `decoder_layers`: ZeRO runs `Decoder`, a pipeline cuts the same list. Initial weights are a
pure function of (seed, parameter name), so they do not depend on the layout. Canonical parameter names are Hugging
Face's Llama names ("model.layers.3.mlp.up_proj.weight"); other families have tables (training/models/hugging_face.py).
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from training.config.schema import ModelConfig, Recompute
from training.models.axes import ALONE, Axes
from training.models.experts import Experts, MixtureOfExperts
from training.models.layers import DecoderBlock, OutputProjection, TokenEmbedding
from training.models.norm import RMSNorm
from training.models.prediction import PredictionBlock, decoder_block_of
from training.models.router import Router


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerDefinition:
    """One layer: its canonical name and how it is built. A tied layer has no module of its own."""

    name: str
    """Prefix of its canonical parameter names."""
    build: Callable[[], nn.Module]
    """Makes the module with its initial weights, or zeros (for a tied layer: the module it shares)."""
    tied_to: str | None = None
    """Name of the layer whose module this one runs again."""
    needs: "LayerDefinition | None" = None
    """A layer whose module this one's calls; where that stands in another part of the model, it brings a copy."""

    @property
    def owner(self) -> str | None:
        """Name of another layer whose weights this one has too."""
        return self.tied_to or (self.needs.name if self.needs else None)


def decoder_layers(
    config: ModelConfig,
    *,
    seed: int,
    recompute: Recompute = Recompute.none,
    initial_weights: bool = True,
    axes: Axes = ALONE,
) -> list[LayerDefinition]:
    """Return the layers in running order: embedding, blocks, final norm, prediction blocks, output projection.

    Args:
        config: the model.
        seed: of the initial weights.
        recompute: which activations are recomputed in backward.
        initial_weights: False leaves every weight at zero, which takes no time: for weights that are loaded anyway.
        axes: the ranks that blocks share work with.
    """

    def layer(name: str, make: Callable[[], nn.Module], tied_to: str | None = None) -> LayerDefinition:
        def build() -> nn.Module:
            if not initial_weights:
                return _zeros(make)
            module = make()
            initialize(module, tied_to or name, config, seed)
            return module

        return LayerDefinition(name=name, build=build, tied_to=tied_to)

    embedding = "model.embed_tokens"
    layers = [layer(embedding, lambda: TokenEmbedding(config))]
    sparse = set(blocks_with_experts(config))
    for name in (f"model.layers.{i}" for i in range(config.num_layers)):
        layers.append(
            layer(name, partial(DecoderBlock, config, recompute, name, has_experts=name in sparse, axes=axes))
        )
    layers.append(layer("model.norm", lambda: RMSNorm(config.hidden_size, config.norm_epsilon)))
    for depth, name in enumerate(prediction_blocks(config), 1):
        make = partial(
            PredictionBlock,
            *(config, recompute, name),
            depth=depth,
            has_experts=config.experts is not None,
            axes=axes,
        )
        layers.append(replace(layer(name, make), needs=layers[0]))
    if config.tied_embeddings:
        layers.append(layer("lm_head", lambda: TokenEmbedding(config), tied_to=embedding))
    else:
        layers.append(layer("lm_head", lambda: OutputProjection(config)))
    return layers


def blocks_with_experts(config: ModelConfig) -> list[str]:
    """Return the canonical names of the blocks that have routed experts, in running order."""
    if config.experts is None:
        return []
    blocks = [f"model.layers.{i}" for i in range(config.experts.num_dense_layers, config.num_layers)]
    return [*blocks, *(f"{name}.block" for name in prediction_blocks(config))]


def prediction_blocks(config: ModelConfig) -> list[str]:
    """Return the canonical names of the blocks of multi-token prediction, in running order."""
    return [f"model.prediction.{i}" for i in range(config.num_prediction_blocks)]


@torch.no_grad()
def initialize(module: nn.Module, layer_name: str, config: ModelConfig, seed: int) -> None:
    """Set initial weights from (seed, canonical name): normal with init_std; norms stay at one.

    Projections back into the residual stream get init_std/sqrt(2·num_layers) (GPT-2 report, section 2.3). Each expert's
    matrices have a name of their own, so that a rank with some of the experts draws what one with all would.
    """

    def draw(values: Tensor, name: str, *, into_residual: bool) -> None:
        key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
        values.normal_(
            0.0, config.init_std / math.sqrt(2 * config.num_layers if into_residual else 1), generator=generator
        )

    for name, parameter in module.named_parameters():
        if parameter.dim() == 2 and not parameter.is_meta:  # one on the meta device has a shape and no values
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            draw(parameter, f"{layer_name}.{name}", into_residual=into_residual)
    for name, experts in _experts_of(module):
        for matrix, parameter in experts.named_parameters():
            for number, values in enumerate(parameter, experts.first_expert):
                if not parameter.is_meta:
                    draw(values, f"{layer_name}.{name}.{number}.{matrix}", into_residual=matrix == "down_proj")


def _experts_of(module: nn.Module) -> Iterator[tuple[str, Experts]]:
    """Yield (name in the module, experts), also those that are spread over ranks and no child of it."""
    for name, child in module.named_modules():
        if isinstance(child, MixtureOfExperts) and child.experts_apart is not None:
            yield f"{name}.experts", child.experts_apart
    for name, child in module.named_modules():
        if isinstance(child, Experts):
            yield name, child


def _zeros(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a module whose weights are zeros. Its constructor draws nothing: it runs without storage."""
    with torch.device("meta"):
        module = make()
    assert not any(True for _ in module.buffers()), "what a constructor puts into a buffer would be lost"
    for part in (module, *(experts for _, experts in _experts_of(module))):
        part.to_empty(device="cpu")
        for parameter in part.parameters():
            parameter.data.zero_()
    return module


class Decoder(nn.Module):
    """Runs a list of layers, or a contiguous part of it, in one process: ids [B, T] -> logits [B, T, V]."""

    def __init__(self, layers: list[LayerDefinition]) -> None:
        super().__init__()
        self.names = [layer.tied_to or layer.name for layer in layers]
        """Of the layers in running order."""
        # A tied layer runs the module again; where that stands in another part, it brings a copy of its own.
        # Module names may not contain dots; canonical_parameters() puts them back.
        builders = {name: layer.build for name, layer in zip(reversed(self.names), reversed(layers), strict=True)}
        needed = {layer.needs.name: layer.needs.build for layer in layers if layer.needs}
        self._held = list(dict.fromkeys([*self.names, *needed]))
        builders = needed | builders
        self.layers = nn.ModuleDict({_key(name): builders[name]() for name in self._held})
        for layer in layers:
            if layer.needs:
                block = self.layers[_key(layer.name)]
                assert isinstance(block, PredictionBlock)
                block.share(self.layers[_key(layer.needs.name)])

    @property
    def sequence(self) -> list[nn.Module]:
        """The layers in running order; a tied one stands in it twice."""
        return [self.layers[_key(name)] for name in self.names]

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return logits [B, T, V] (of a part: the hidden states [B, T, D] after it)."""
        hidden: Tensor = ids_BT
        for layer in self.sequence:
            hidden = layer(hidden)
        return hidden

    def canonical_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (canonical name, parameter), each parameter once; not those of experts that are spread over ranks."""
        for name in self._held:
            for rest, parameter in self.layers[_key(name)].named_parameters():
                yield f"{name}.{rest}", parameter

    def experts_apart(self) -> Iterator[tuple[str, Experts]]:
        """Yield (canonical name, experts) of blocks whose experts are spread over ranks: no part of this module."""
        for block in self._blocks():
            if block.experts_apart is not None:
                yield f"{block.layer_name}.mlp.experts", block.experts_apart

    def routers(self) -> Iterator[tuple[str, Router]]:
        """Yield (name of the block, its router)."""
        for block in self._blocks():
            if isinstance(block.mlp, MixtureOfExperts):
                yield block.layer_name, block.mlp.gate

    def _blocks(self) -> Iterator[DecoderBlock]:
        for name in self._held:
            block = decoder_block_of(self.layers[_key(name)])
            if block is not None:
                yield block


def _key(layer_name: str) -> str:
    return layer_name.replace(".", "/")
