"""The layers of a dense decoder of the Llama 3 family.

Shape suffixes: B sequences, T tokens, D hidden, N query heads, K key/value heads, H head size, V vocabulary.
Every layer takes one tensor and returns one, so that a pipeline can cut anywhere between them.
Parameter names and orientations are those of Hugging Face's Llama, apart from the prefix (training/models/decoder.py).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config.schema import ModelConfig, Recompute
from training.models.dropout import DropoutKeys, current_keys, drop_elements
from training.models.inference import KeyValueCache, current_cache, wanted_positions
from training.models.recompute import run_block
from training.models.rope import rotary_tables, rotate


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dim (arXiv:1910.07467)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.epsilon = config.norm_epsilon

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the normalised hidden states, same shape and dtype."""
        return F.rms_norm(hidden_BTD, (hidden_BTD.shape[-1],), self.weight, self.epsilon)


class TokenEmbedding(nn.Module):
    """One [V, D] matrix used both ways: ids -> hidden, and, where it is tied, hidden -> logits.

    Both uses go through forward, because ZeRO-3 gathers a weight when its module is called and a tied pipeline layer
    is the same module called at the other end.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, ids_BT_or_hidden_BTD: Tensor) -> Tensor:
        """Return hidden [B, T, D] for integer ids [B, T], or logits for hidden states, as `OutputProjection` does."""
        if ids_BT_or_hidden_BTD.is_floating_point():
            return F.linear(wanted_positions(ids_BT_or_hidden_BTD), self.weight)
        return F.embedding(ids_BT_or_hidden_BTD, self.weight)


class OutputProjection(nn.Module):
    """Untied projection of hidden states to logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return logits [B, T, V]; in an inference pass those of the wanted positions, [N, V]."""
        return F.linear(wanted_positions(hidden_BTD), self.weight)


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv:2305.13245) with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_heads
        kv_size = config.num_kv_heads * self.head_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the attention output [B, T, D]; position t sees positions 0..t, and what a cache holds before."""
        B, T, D = hidden_BTD.shape
        cache = current_cache()
        begun = cache if cache is not None and bool(cache.lengths_B.any()) else None
        if begun:
            cos, sin = begun.once((T, "rotary"), lambda: self._rotary_tables(begun, T, hidden_BTD.device))
        else:
            cos, sin = rotary_tables(self.config, T, hidden_BTD.device)
        q_BNTH = rotate(self._heads(self.q_proj(hidden_BTD)), cos, sin)
        k_BKTH = rotate(self._heads(self.k_proj(hidden_BTD)), cos, sin)
        v_BKTH = self._heads(self.v_proj(hidden_BTD))
        visible = begun.once((T, "visible"), lambda: begun.visible(T, hidden_BTD.device)) if begun else None
        if cache is not None:
            k_BKTH, v_BKTH = cache.extend(self, k_BKTH, v_BKTH)
        mixed_BNTH = F.scaled_dot_product_attention(
            q_BNTH,
            k_BKTH,
            v_BKTH,
            attn_mask=visible,
            is_causal=visible is None,
            enable_gqa=self.config.num_kv_heads < self.config.num_heads,
        )
        return self.o_proj(mixed_BNTH.transpose(1, 2).reshape(B, T, D))

    def _rotary_tables(self, begun: KeyValueCache, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rows of the rotary tables for the next tokens of sequences, [B, 1, T, H] each."""
        positions_BT = begun.positions(num_tokens, device)
        cos_TH, sin_TH = rotary_tables(self.config, begun.capacity_tokens, device)
        return cos_TH[positions_BT][:, None], sin_TH[positions_BT][:, None]

    def _heads(self, flat_BTX: Tensor) -> Tensor:
        return flat_BTX.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU feed-forward layer (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the feed-forward output [B, T, D]."""
        return self.down_proj(F.silu(self.gate_proj(hidden_BTD)) * self.up_proj(hidden_BTD))


class DecoderBlock(nn.Module):
    """Pre-norm block: attention and feed-forward, each added to the residual stream.

    In training each branch's output passes dropout first (arXiv:1706.03762, section 5.4; GPT-2's resid_pdrop).

    Args:
        config: the model.
        recompute: which activations are recomputed in backward.
        layer_name: the canonical name, which its dropout masks follow from.
    """

    def __init__(self, config: ModelConfig, recompute: Recompute, layer_name: str) -> None:
        super().__init__()
        self.layer_name = layer_name
        self.dropout = config.dropout
        self.recompute = recompute
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = FeedForward(config)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the residual stream after the block, [B, T, D].

        Raises:
            RuntimeError: there is dropout, and the forward runs in training mode outside of `dropout_of`.
        """
        # Read here and handed on: the second forward of recompute runs in backward, outside of dropout_of.
        keys = current_keys(self.layer_name) if self.training and self.dropout > 0 else None
        return run_block(partial(self._compute, keys=keys), hidden_BTD, self.recompute)

    def _compute(self, hidden_BTD: Tensor, *, keys: DropoutKeys | None) -> Tensor:
        attended_BTD = self.self_attn(self.input_layernorm(hidden_BTD))
        hidden_BTD = hidden_BTD + self._drop(attended_BTD, keys, "self_attn")
        fed_forward_BTD = self.mlp(self.post_attention_layernorm(hidden_BTD))
        return hidden_BTD + self._drop(fed_forward_BTD, keys, "mlp")

    def _drop(self, branch_BTD: Tensor, keys: DropoutKeys | None, branch: str) -> Tensor:
        if keys is None:
            return branch_BTD
        return drop_elements(branch_BTD, self.dropout, keys, f"{self.layer_name}.{branch}")
