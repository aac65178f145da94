"""The model's parameters layer by layer, as the engines meet them. No torch.

tests/unit/rehearsal/test_parameters.py compares them with a built model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from training.config.model_schema import ExpertsConfig, ModelConfig
from training.config.optimizer_schema import OptimizerConfig
from training.config.parameter_groups import Named, grouped

EMBEDDING = "model.embed_tokens"


class Sharing(StrEnum):
    """Whose copies of a parameter are replicas of each other."""

    dense = "dense"
    """Those of all ranks of a pipeline stage."""
    expert = "expert"
    """Those of the ranks with the same expert index."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the model, or one rank's part of it where tensor parallelism cuts it."""

    name: str
    """Canonical name."""
    shape: tuple[int, ...]
    expert: int | None = None
    """Number of the routed expert that it is part of."""
    is_tied: bool = False
    """Whether another pipeline stage holds it too."""
    is_copy: bool = False
    """Whether that other pipeline stage owns it."""
    cut_dim: int | None = None
    """Dim that tensor parallelism cuts (arXiv:1909.08053, section 3); None is not cut."""

    @property
    def sharing(self) -> Sharing:
        """Whose copies are replicas of each other."""
        return Sharing.dense if self.expert is None else Sharing.expert

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)

    def tensor_part(self, tensor: int) -> "Parameter":
        """Return what one of `tensor` ranks holds: a part, or all of it where that dim does not divide evenly."""
        if self.cut_dim is None or self.shape[self.cut_dim] % tensor:
            return replace(self, cut_dim=None)
        shape = tuple(size // tensor if dim == self.cut_dim else size for dim, size in enumerate(self.shape))
        return replace(self, shape=shape)

    @property
    def is_matrix(self) -> bool:
        """Whether AdamW decays it (training/engine/optimizer.py)."""
        return len(self.shape) >= 2


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of `training.models.decoder.decoder_layers`."""

    name: str
    parameters: tuple[Parameter, ...]
    """In the order in which its module registers them."""
    is_block: bool = False
    """Decoder blocks are leaf modules of ZeRO-3: their weights travel together."""
    has_experts: bool = False
    """Whether its feed-forward layer is one of routed experts."""


def decoder_layers(model: ModelConfig) -> list[Layer]:
    """Return all layers in running order; a tied output projection has the embedding's parameter."""
    D, V = model.hidden_size, model.vocab_size
    layers = [Layer(EMBEDDING, (Parameter(f"{EMBEDDING}.weight", (V, D), cut_dim=0),))]
    for number in range(model.num_layers):
        layers.append(
            _block(model, f"model.layers.{number}", model.experts if _is_routed(model.experts, number) else None)
        )
    layers.append(Layer("model.norm", (Parameter("model.norm.weight", (D,)),)))
    head = EMBEDDING if model.tied_embeddings else "lm_head"
    layers.append(Layer("lm_head", (Parameter(f"{head}.weight", (V, D), cut_dim=0),)))
    return layers


def chunk_layers(layers: Sequence[Layer], part: range) -> list[Layer]:
    """Return the layers of a part of the model, with a copy of its own where a tied layer's owner is elsewhere."""
    owned_elsewhere = layers[-1].parameters[0].name == layers[0].parameters[0].name and not {0, len(layers) - 1} <= set(
        part
    )
    mine = []
    for index in part:
        layer = layers[index]
        if owned_elsewhere and index in (0, len(layers) - 1):
            (weight,) = layer.parameters
            weight = replace(weight, is_tied=True, is_copy=index > 0)
            layer = Layer(layer.name, (weight,))
        mine.append(layer)
    return mine


def distinct(layers: Sequence[Layer]) -> list[Parameter]:
    """Return the parameters of layers in order, each once: a tied weight may stand in two layers of a chunk."""
    return list({parameter.name: parameter for layer in layers for parameter in layer.parameters}.values())


def optimizer_groups(config: OptimizerConfig, parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    """Return the optimizer's groups, as the engines make them (training/engine/optimizer.py)."""
    return [group for _, group in grouped(config, parameters, _described)]


def _described(parameter: Parameter) -> Named:
    return Named(name=parameter.name, is_matrix=parameter.is_matrix, is_shared=parameter.is_tied)


def _is_routed(experts: ExpertsConfig | None, number: int) -> bool:
    return experts is not None and number >= experts.num_dense_layers


def _block(model: ModelConfig, name: str, experts: ExpertsConfig | None) -> Layer:
    D, F = model.hidden_size, model.ffn_size
    kv_size = model.num_kv_heads * (D // model.num_heads)
    parameters = [
        Parameter(f"{name}.input_layernorm.weight", (D,)),
        Parameter(f"{name}.self_attn.q_proj.weight", (D, D), cut_dim=0),
        Parameter(f"{name}.self_attn.k_proj.weight", (kv_size, D), cut_dim=0),
        Parameter(f"{name}.self_attn.v_proj.weight", (kv_size, D), cut_dim=0),
        Parameter(f"{name}.self_attn.o_proj.weight", (D, D), cut_dim=1),
        Parameter(f"{name}.post_attention_layernorm.weight", (D,)),
    ]
    if experts is None:
        parameters += _feed_forward(f"{name}.mlp", D, F)
        return Layer(name, tuple(parameters), is_block=True)
    parameters.append(Parameter(f"{name}.mlp.gate.weight", (experts.num_experts, D)))
    for number in range(experts.num_shared_experts):
        parameters += _feed_forward(f"{name}.mlp.shared_experts.{number}", D, experts.expert_ffn_size)
    for number in range(experts.num_experts):
        parameters += _feed_forward(f"{name}.mlp.experts.{number}", D, experts.expert_ffn_size, expert=number)
    return Layer(name, tuple(parameters), is_block=True, has_experts=True)


def _feed_forward(name: str, hidden_size: int, ffn_size: int, expert: int | None = None) -> list[Parameter]:
    return [
        Parameter(f"{name}.gate_proj.weight", (ffn_size, hidden_size), expert, cut_dim=0),
        Parameter(f"{name}.up_proj.weight", (ffn_size, hidden_size), expert, cut_dim=0),
        Parameter(f"{name}.down_proj.weight", (hidden_size, ffn_size), expert, cut_dim=1),
    ]
