"""Parameters and FLOPs of a model in closed form. No torch: the planner and the launcher read it.

Conventions, used everywhere a FLOP is named: a multiply-add is 2 FLOPs; backward costs twice the forward; the
embedding look-up is free; attention is causal, so each position meets T/2 others on average; recompute is not
counted (model FLOPs as in PaLM, arXiv:2204.02311, appendix B, but with causal attention).
"""

from dataclasses import dataclass

from training.config.schema import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """Size of one layer of `models.decoder.decoder_layers`."""

    name: str
    num_parameters: int
    """Parameters the layer owns (0 for a tied one)."""
    forward_flops_per_token: float
    """FLOPs of one forward pass per token."""
    largest_parameter: int
    """Elements of the largest parameter that it runs with, also if that is a tied one."""


def layer_costs(config: ModelConfig, sequence_length: int) -> list[LayerCost]:
    """Return the cost of every layer, in running order, one entry per entry of `decoder_layers`."""
    D, F, V = config.hidden_size, config.ffn_size, config.vocab_size
    kv_size = config.num_kv_heads * (D // config.num_heads)
    matrices = 2 * D * D + 2 * D * kv_size + 3 * D * F
    attention_flops = 2 * 2 * D * sequence_length / 2
    block = LayerCost(
        name="model.layers",
        num_parameters=matrices + 2 * D,
        forward_flops_per_token=2 * matrices + attention_flops,
        largest_parameter=max(D * D, D * F),
    )
    head = LayerCost(
        name="lm_head",
        num_parameters=0 if config.tied_embeddings else V * D,
        forward_flops_per_token=2 * V * D,
        largest_parameter=V * D,
    )
    embedding = LayerCost(
        name="model.embed_tokens", num_parameters=V * D, forward_flops_per_token=0.0, largest_parameter=V * D
    )
    norm = LayerCost(name="model.norm", num_parameters=D, forward_flops_per_token=0.0, largest_parameter=D)
    return [embedding, *[block] * config.num_layers, norm, head]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkSize:
    """Size of a contiguous part of the layers that runs by itself."""

    layers: tuple[int, ...]
    """Parameters of each layer; a tied one's too if the layer that owns them is elsewhere: it has a copy then."""
    largest_parameter: int
    """Elements of the largest parameter."""
    num_blocks: int
    """Decoder blocks."""
    has_norm: bool
    """Whether the final norm is among the layers."""
    has_head: bool
    """Whether the output projection is."""

    @property
    def num_parameters(self) -> int:
        """Parameters of all layers."""
        return sum(self.layers)


def chunk_size(config: ModelConfig, part: range) -> ChunkSize:
    """Return the size of a range of `decoder_layers`."""
    costs = layer_costs(config, 1)
    norm, head = len(costs) - 2, len(costs) - 1
    layers = {layer: costs[layer].num_parameters for layer in part}
    if config.tied_embeddings and head in part and 0 not in part:
        layers[head] = costs[0].num_parameters
    return ChunkSize(
        layers=tuple(layers.values()),
        largest_parameter=max(costs[layer].largest_parameter for layer in part),
        num_blocks=sum(0 < layer < norm for layer in part),
        has_norm=norm in part,
        has_head=head in part,
    )


def num_parameters(config: ModelConfig) -> int:
    """Return the number of parameters, tied ones counted once."""
    return sum(layer.num_parameters for layer in layer_costs(config, 1))


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Return model FLOPs of forward and backward per trained token."""
    return 3 * sum(layer.forward_flops_per_token for layer in layer_costs(config, sequence_length))
