"""Parameters and FLOPs of a model in closed form. No torch: the planner and the launcher read it.

Conventions, used everywhere a FLOP is named: a multiply-add is 2 FLOPs; backward costs twice the forward; the
embedding look-up is free; attention is causal, so each position meets T/2 others on average; recompute is not
counted (model FLOPs as in PaLM, arXiv:2204.02311, appendix B, but with causal attention).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from training.config.model_schema import ExpertsConfig, ModelConfig
from training.config.schema import Recompute


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
    largest_dense_parameter: int
    """The same but for routed experts."""
    num_expert_parameters: int = 0
    """Those of num_parameters that belong to routed experts, which expert parallelism spreads."""
    num_active_parameters: int | None = None
    """Those of num_parameters that one token meets; None is all."""


def layer_costs(config: ModelConfig, sequence_length: int) -> list[LayerCost]:
    """Return the cost of every layer, in running order, one entry per entry of `decoder_layers`."""
    D, V = config.hidden_size, config.vocab_size
    head = LayerCost(
        name="lm_head",
        num_parameters=0 if config.tied_embeddings else V * D,
        forward_flops_per_token=2 * V * D * (1 + config.num_prediction_blocks),
        largest_parameter=V * D,
        largest_dense_parameter=V * D,
    )
    embedding = LayerCost(
        name="model.embed_tokens",
        num_parameters=V * D,
        forward_flops_per_token=0.0,
        largest_parameter=V * D,
        largest_dense_parameter=V * D,
    )
    norm = LayerCost(
        name="model.norm", num_parameters=D, forward_flops_per_token=0.0, largest_parameter=D, largest_dense_parameter=D
    )
    dense, sparse = _block(config, sequence_length, None), _block(config, sequence_length, config.experts)
    num_dense = config.experts.num_dense_layers if config.experts else config.num_layers
    blocks = [dense] * num_dense + [sparse] * (config.num_layers - num_dense)
    further = [_prediction_block(config, sparse) for _ in range(config.num_prediction_blocks)]
    return [embedding, *blocks, norm, *further, head]


def _prediction_block(config: ModelConfig, block: LayerCost) -> LayerCost:
    """Return the cost of a block of multi-token prediction: a decoder block, what merges its inputs, three norms."""
    D = config.hidden_size
    more = 2 * D * D + 3 * D
    active = block.num_parameters if block.num_active_parameters is None else block.num_active_parameters
    return replace(
        block,
        name="model.prediction",
        num_parameters=block.num_parameters + more,
        num_active_parameters=active + more,
        forward_flops_per_token=block.forward_flops_per_token + 2 * 2 * D * D,
        # It looks tokens up.
        largest_parameter=max(block.largest_parameter, config.vocab_size * D),
        largest_dense_parameter=max(block.largest_dense_parameter, config.vocab_size * D),
    )


def _block(config: ModelConfig, sequence_length: int, experts: ExpertsConfig | None) -> LayerCost:
    """Return the cost of a decoder block, with routed experts or one feed-forward layer of ffn_size."""
    D, F = config.hidden_size, config.ffn_size
    projections, norms = attention_matrices(config), 2 * D + _attention_norms(config)
    attention = sum(projections.values())
    attention_flops = 2 * config.num_heads * sum(head_sizes(config)) * sequence_length / 2
    if experts is None:
        matrices, largest = attention + 3 * D * F, max(*projections.values(), D * F)
        return LayerCost(
            name="model.layers",
            num_parameters=matrices + norms,
            forward_flops_per_token=2 * matrices + attention_flops,
            largest_parameter=largest,
            largest_dense_parameter=largest,
        )
    one_expert, router = 3 * D * experts.expert_ffn_size, D * experts.num_experts
    routed = experts.num_experts * one_expert
    always = attention + router + experts.num_shared_experts * one_expert
    active = always + experts.experts_per_token * one_expert
    largest = max(*projections.values(), router, experts.num_shared_experts * one_expert // 3)
    return LayerCost(
        name="model.layers",
        num_parameters=always + routed + norms,
        forward_flops_per_token=2 * active + attention_flops,
        largest_parameter=max(largest, routed // 3),
        largest_dense_parameter=largest,
        num_expert_parameters=routed,
        num_active_parameters=active + norms,
    )


def head_sizes(config: ModelConfig) -> tuple[int, int]:
    """Return the width of a head's queries and keys, and of its values, as attention computes with them."""
    latent = config.latent_attention
    if latent is not None:
        return latent.head_size + latent.rope_head_size, latent.value_head_size
    return config.attention_head_size, config.attention_head_size


def dealt_kv_heads(config: ModelConfig, sequence: int, *, tensor: int = 1) -> int:
    """Return the key/value heads that are dealt to ranks which share sequences (training/models/attention.py).

    Where there are too few to deal, or they do not divide, each is repeated for the ranks that need it.

    Args:
        config: the model.
        sequence: ranks that heads are dealt to.
        tensor: ranks of tensor parallelism, each of which has its part of the heads already.
    """
    num_heads = config.num_heads // tensor
    kept = num_heads if config.latent_attention is not None else config.num_kv_heads // tensor
    if kept % sequence == 0:
        return kept
    return sequence if sequence % kept == 0 else num_heads


def attention_matrices(config: ModelConfig) -> dict[str, int]:
    """Return the elements of each matrix of an attention layer, by its name (training/models/attention.py)."""
    D, N = config.hidden_size, config.num_heads
    latent = config.latent_attention
    key_size, value_size = head_sizes(config)
    if latent is None:
        queries, keys = N * key_size, config.num_kv_heads * key_size
        return {"q_proj": D * queries, "k_proj": D * keys, "v_proj": D * keys, "o_proj": queries * D}
    direct = {"q_proj": D * N * key_size}
    rank = latent.query_rank
    return {
        **(direct if rank is None else {"q_a_proj": D * rank, "q_b_proj": rank * N * key_size}),
        "kv_a_proj_with_mqa": D * (latent.kv_rank + latent.rope_head_size),
        "kv_b_proj": latent.kv_rank * N * (latent.head_size + value_size),
        "o_proj": N * value_size * D,
    }


def _attention_norms(config: ModelConfig) -> int:
    """Return the parameters of the norms inside an attention layer."""
    latent = config.latent_attention
    if latent is not None:
        return (latent.query_rank or 0) + latent.kv_rank
    return 2 * config.attention_head_size if config.qk_norm else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSize:
    """What one engine has, on one rank before ZeRO shards it."""

    layers: tuple[int, ...]
    """Parameters of each layer, or of what else is gathered and reduced at once."""
    largest_parameter: int
    """Elements of the largest parameter."""

    @property
    def num_parameters(self) -> int:
        """Parameters of all layers."""
        return sum(self.layers)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkSize(EngineSize):
    """Size of a contiguous part of the layers that runs by itself; experts that are spread over ranks are apart.

    A tied layer counts too if the layer that owns its parameters is elsewhere: it has a copy then.
    """

    experts: EngineSize | None = None
    """Those of this rank, block by block; None where they are not spread over ranks, and belong to their layers."""
    num_blocks: int
    """Decoder blocks."""
    num_expert_blocks: int = 0
    """Those of them with routed experts."""
    has_norm: bool
    """Whether the final norm is among the layers."""
    has_head: bool
    """Whether the output projection is."""


@lru_cache(maxsize=4096)  # the search of a plan asks for the same few again and again
def chunk_size(config: ModelConfig, part: range, *, expert: int = 1) -> ChunkSize:
    """Return the size of a range of `decoder_layers`.

    Args:
        config: the model.
        part: its layers.
        expert: ranks that the experts of a block are spread over.
    """
    costs = layer_costs(config, 1)
    norm, head = config.num_layers + 1, len(costs) - 1
    apart = expert > 1
    layers = {layer: costs[layer].num_parameters - apart * costs[layer].num_expert_parameters for layer in part}
    if config.shares_embedding and head in part and 0 not in part:  # prediction blocks stand beside the head
        layers[head] += costs[0].num_parameters
    routed = [costs[layer].num_expert_parameters for layer in part if costs[layer].num_expert_parameters]
    experts = None
    if apart and routed:
        experts = EngineSize(
            layers=tuple(count // expert for count in routed), largest_parameter=max(routed) // (3 * expert)
        )
    return ChunkSize(
        layers=tuple(layers.values()),
        largest_parameter=max(
            costs[layer].largest_dense_parameter if apart else costs[layer].largest_parameter for layer in part
        ),
        experts=experts,
        num_blocks=sum(0 < layer < norm or norm < layer < head for layer in part),
        num_expert_blocks=len(routed),
        has_norm=norm in part,
        has_head=head in part,
    )


def num_parameters(config: ModelConfig) -> int:
    """Return the number of parameters, tied ones counted once."""
    return sum(layer.num_parameters for layer in layer_costs(config, 1))


def num_active_parameters(config: ModelConfig) -> int:
    """Return the number of parameters that one token meets: all of them in a dense model."""
    layers = layer_costs(config, 1)
    return sum(x.num_parameters if x.num_active_parameters is None else x.num_active_parameters for x in layers)


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Return model FLOPs of forward and backward per trained token."""
    return 3 * sum(layer.forward_flops_per_token for layer in layer_costs(config, sequence_length))


def recomputed_flops_per_token(config: ModelConfig, sequence_length: int, recompute: Recompute) -> float:
    """Return FLOPs that backward computes a second time, per trained token; with model FLOPs they are HFU's numerator.

    `full` runs the decoder blocks forward again; `selective` keeps every matrix product and attention
    (models/recompute.py), all that is counted as FLOPs here. arXiv:2205.05198, section 6.3.
    """
    if recompute is not Recompute.full:
        return 0.0
    layers = layer_costs(config, sequence_length)
    return sum(x.forward_flops_per_token for x in layers if x.name in ("model.layers", "model.prediction"))
