"""The model's parameters layer by layer, as the engines meet them. No torch.

tests/unit/rehearsal/test_parameters.py compares them with a built model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from training.config.model_schema import ExpertsConfig, ModelConfig
from training.config.optimizer_schema import OptimizerConfig
from training.config.parameter_groups import Named, grouped

EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the model, or one rank's part of it where tensor or expert parallelism cuts it."""

    name: str
    """Canonical name."""
    shape: tuple[int, ...]
    is_expert: bool = False
    """Whether it stacks one matrix of a block's routed experts, [experts, …]."""
    is_tied: bool = False
    """Whether another pipeline stage holds it too."""
    is_copy: bool = False
    """Whether that other pipeline stage owns it."""
    cut_dim: int | None = None
    """Dim that tensor parallelism cuts (arXiv:1909.08053, section 3); None is not cut."""
    place: int = 0
    """Which of the equal parts of its experts it is; part p begins at p times its elements."""
    num_parts: int = 1
    """Ranks that its experts are spread over."""

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def start(self) -> int:
        """Its first element within the experts of all ranks."""
        return self.place * self.numel

    @property
    def whole_numel(self) -> int:
        """Elements on all ranks that its experts are spread over."""
        return self.num_parts * self.numel

    def tensor_part(self, tensor: int) -> "Parameter":
        """Return what one of `tensor` ranks holds: a part, or all of it where that dim does not divide evenly."""
        if self.cut_dim is None or self.shape[self.cut_dim] % tensor:
            return replace(self, cut_dim=None)
        shape = tuple(size // tensor if dim == self.cut_dim else size for dim, size in enumerate(self.shape))
        return replace(self, shape=shape)

    def expert_part(self, place: int, num_parts: int) -> "Parameter":
        """Return what the rank at a place of the expert axis holds of stacked experts."""
        num_experts, *rest = self.shape
        return replace(self, shape=(num_experts // num_parts, *rest), place=place, num_parts=num_parts)

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
    apart: tuple[Parameter, ...] = ()
    """This rank's experts where they are spread over ranks: an engine of their own has them, not that of the layer."""

    @property
    def all_parameters(self) -> tuple[Parameter, ...]:
        """Its parameters, those of experts that are apart among them."""
        return (*self.parameters, *self.apart)


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
    D = model.hidden_size
    attention = _latent_attention if model.latent_attention is not None else _attention
    parameters = [
        Parameter(f"{name}.input_layernorm.weight", (D,)),
        *attention(model, f"{name}.self_attn"),
        Parameter(f"{name}.post_attention_layernorm.weight", (D,)),
    ]
    if experts is None:
        parameters += _feed_forward(f"{name}.mlp", D, model.ffn_size)
        return Layer(name, tuple(parameters), is_block=True)
    E, width = experts.num_experts, experts.expert_ffn_size
    parameters += [
        Parameter(f"{name}.mlp.gate.weight", (E, D)),
        Parameter(f"{name}.mlp.experts.gate_proj", (E, width, D), is_expert=True, cut_dim=1),
        Parameter(f"{name}.mlp.experts.up_proj", (E, width, D), is_expert=True, cut_dim=1),
        Parameter(f"{name}.mlp.experts.down_proj", (E, D, width), is_expert=True, cut_dim=2),
    ]
    if experts.num_shared_experts:
        parameters += _feed_forward(f"{name}.mlp.shared_experts", D, experts.num_shared_experts * width)
    return Layer(name, tuple(parameters), is_block=True, has_experts=True)


def _attention(model: ModelConfig, name: str) -> list[Parameter]:
    D, H = model.hidden_size, model.attention_head_size
    queries, keys = model.num_heads * H, model.num_kv_heads * H
    norms = [Parameter(f"{name}.{which}_norm.weight", (H,)) for which in "qk"] if model.qk_norm else []
    return [
        Parameter(f"{name}.q_proj.weight", (queries, D), cut_dim=0),
        Parameter(f"{name}.k_proj.weight", (keys, D), cut_dim=0),
        Parameter(f"{name}.v_proj.weight", (keys, D), cut_dim=0),
        Parameter(f"{name}.o_proj.weight", (D, queries), cut_dim=1),
        *norms,
    ]


def _latent_attention(model: ModelConfig, name: str) -> list[Parameter]:
    """What is projected to all heads is cut by tensor parallelism; what is narrower is not."""
    latent, D, N = model.latent_attention, model.hidden_size, model.num_heads
    assert latent is not None
    queries = N * (latent.head_size + latent.rope_head_size)
    if latent.query_rank is None:
        made = [Parameter(f"{name}.q_proj.weight", (queries, D), cut_dim=0)]
    else:
        made = [
            Parameter(f"{name}.q_a_proj.weight", (latent.query_rank, D)),
            Parameter(f"{name}.q_a_layernorm.weight", (latent.query_rank,)),
            Parameter(f"{name}.q_b_proj.weight", (queries, latent.query_rank), cut_dim=0),
        ]
    keys_and_values = N * (latent.head_size + latent.value_head_size)
    return [
        *made,
        Parameter(f"{name}.kv_a_proj_with_mqa.weight", (latent.kv_rank + latent.rope_head_size, D)),
        Parameter(f"{name}.kv_a_layernorm.weight", (latent.kv_rank,)),
        Parameter(f"{name}.kv_b_proj.weight", (keys_and_values, latent.kv_rank), cut_dim=0),
        Parameter(f"{name}.o_proj.weight", (D, N * latent.value_head_size), cut_dim=1),
    ]


def _feed_forward(name: str, hidden_size: int, ffn_size: int) -> list[Parameter]:
    return [
        Parameter(f"{name}.gate_proj.weight", (ffn_size, hidden_size), cut_dim=0),
        Parameter(f"{name}.up_proj.weight", (ffn_size, hidden_size), cut_dim=0),
        Parameter(f"{name}.down_proj.weight", (hidden_size, ffn_size), cut_dim=1),
    ]
