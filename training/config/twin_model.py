"""A model of the same shape in small: every width the same share of the hidden size, every count that is a choice kept.

A scaled-down model shows whether the code trains such a model, as the muTransfer paper does with its proxy models
(arXiv:2203.03466, section 1), not how well the large one will do. Learning rates are not transferred.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from training.config.model_schema import ExpertsConfig, LatentAttentionConfig, ModelConfig

_HIDDEN_SIZE = 64
"""Of the smallest twins: about a millisecond a block and micro-batch on one core."""
_WIDE = 128
"""A hidden size that is exceeded only if the ratios cannot be kept otherwise."""
_WIDEST = 256
_HEAD_SIZE = 8
"""Smallest head, if the ratios allow it: four frequencies of rotary positions."""
_NUM_HEADS = 4
_NUM_EXPERTS = 8
_TOLERANCE = 0.02
"""Largest sum of |ln(ratio / the original's)| over all widths that counts as the same ratios."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TwinSizes:
    """What a twin's model has to fit."""

    num_layers: int
    """Blocks that its pipeline wants; it never has more than the original."""
    vocab_size: int
    """Tokens of the tokenizer."""
    length_ratio: float
    """Its sequences' length over the original's."""


def twin_model(model: ModelConfig, sizes: TwinSizes) -> ModelConfig:
    """Return the scaled-down model: at most 256 wide, every width the nearest whole number to its share of that.

    Query heads per key/value head, experts of a token, groups, shared experts, switches, losses and the factors of
    rotary positions are the original's; of leading dense blocks there is at least one where it has any.
    """
    num_layers = min(model.num_layers, sizes.num_layers)
    shape = min(_shapes(model), key=_preference)
    return replace(
        shape.model,
        vocab_size=sizes.vocab_size,
        num_layers=num_layers,
        max_sequence_length=scaled_length(model.max_sequence_length, sizes.length_ratio),
        rope_scaling=model.rope_scaling
        and replace(
            model.rope_scaling,
            original_max_sequence_length=scaled_length(
                model.rope_scaling.original_max_sequence_length, sizes.length_ratio
            ),
        ),
        yarn=model.yarn
        and replace(
            model.yarn,
            original_max_sequence_length=max(
                scaled_length(model.yarn.original_max_sequence_length, sizes.length_ratio),
                # the least that can be sorted into fast and slow pairs (arXiv:2309.00071, section 3.2)
                math.floor(2 * math.pi * model.yarn.beta_slow) + 1,
            ),
        ),
        experts=shape.model.experts and _fewer(shape.model.experts, model.num_layers, num_layers),
    )


def scaled_length(tokens: int, ratio: float) -> int:
    """Return a length in small: even, so that two ranks can share it."""
    return 2 * max(1, round(tokens * ratio / 2))


@dataclass(frozen=True, slots=True)
class _Shape:
    """A choice of hidden size and heads, with the widths that follow."""

    model: ModelConfig
    error: float
    """Sum of |ln(ratio / the original's)| over its widths."""
    lacks: int
    """Key/value heads that it has less than it should."""
    head_size: int


def _preference(shape: _Shape) -> tuple[bool, bool, bool, int, int]:
    """Return what sorts the best shape first: the ratios, a small model, no tiny heads, several key/value heads."""
    hidden = shape.model.hidden_size
    return shape.error > _TOLERANCE, hidden > _WIDE, shape.head_size < _HEAD_SIZE, shape.lacks, hidden


def _shapes(model: ModelConfig) -> Iterator[_Shape]:
    """Yield the shapes to choose from; any of them is a model that can be built."""
    smallest = min(_HIDDEN_SIZE, model.hidden_size)
    per_kv = model.num_heads // model.num_kv_heads
    wanted = min(model.num_kv_heads, max(2, -(-_NUM_HEADS // per_kv)))
    for hidden in range(smallest, max(_WIDEST, smallest) + 1, 8):
        for num_kv_heads in {wanted, 1 if model.latent_attention is None else wanted}:
            yield _shape(model, hidden, num_kv_heads, per_kv * num_kv_heads, lacks=wanted - num_kv_heads)


def _shape(model: ModelConfig, hidden: int, num_kv_heads: int, num_heads: int, *, lacks: int) -> _Shape:
    share, per_head = hidden / model.hidden_size, model.num_heads / num_heads
    pairs: list[tuple[float, int]] = []

    def width(original: int, factor: float = share, *, multiple: int = 1) -> int:
        """Return the nearest width of a part; heads are wider the fewer there are."""
        found = multiple * max(1, round(original * factor / multiple))
        pairs.append((original * factor, found))
        return found

    latent, experts = model.latent_attention, model.experts
    if latent is None:
        head = width(model.attention_head_size, share * per_head, multiple=2)
    else:
        latent = LatentAttentionConfig(
            kv_rank=width(latent.kv_rank),
            query_rank=None if latent.query_rank is None else width(latent.query_rank),
            head_size=width(latent.head_size, share * per_head),
            rope_head_size=width(latent.rope_head_size, share * per_head, multiple=2),
            value_head_size=width(latent.value_head_size, share * per_head),
        )
        head = latent.rope_head_size
    small = replace(
        model,
        hidden_size=hidden,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head if latent is None and num_heads * head != hidden else None,
        latent_attention=latent,
        ffn_size=width(model.ffn_size),
        experts=experts and replace(experts, expert_ffn_size=width(experts.expert_ffn_size)),
    )
    return _Shape(small, sum(abs(math.log(found / exact)) for exact, found in pairs), lacks, head)


def _fewer(experts: ExpertsConfig, num_layers: int, num_twin_layers: int) -> ExpertsConfig:
    """Return the experts of a twin: eight, or as many as give a token twice as many to choose from as it takes."""
    unit = math.lcm(2, experts.num_groups)  # two ranks share them
    choice = 2 * experts.experts_per_token * experts.num_groups / experts.groups_per_token
    dense = experts.num_dense_layers
    return replace(
        experts,
        num_experts=min(
            experts.num_experts, unit * math.ceil(max(_NUM_EXPERTS, choice, 2 * experts.num_groups) / unit)
        ),
        num_dense_layers=min(max(1, round(dense * num_twin_layers / num_layers)), num_twin_layers - 1) if dense else 0,
    )
