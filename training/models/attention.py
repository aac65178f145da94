"""The attention layers of a decoder: grouped-query and multi-head latent.

Shape suffixes: B sequences, T tokens, D hidden, N query heads, K key/value heads, H head size, V value head size.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from training.config.model_schema import ModelConfig
from training.models.attend import attend
from training.models.axes import ALONE, Axes, heads_for_tokens, tokens_for_heads
from training.models.inference import KeyValueCache, current_cache, is_inferring
from training.models.learning import LearningPass
from training.models.norm import RMSNorm
from training.models.rope import rotary_tables, rotate

_LATENT_EPSILON = 1e-6
"""Of the norms inside latent attention: a constant in DeepSeek's code (transformers 5.23, modeling_deepseek_v3.py)."""


class CausalAttention(nn.Module, ABC):
    """What kinds of attention share: rotary positions, the key/value cache, tokens exchanged for heads."""

    def __init__(self, config: ModelConfig, axes: Axes) -> None:
        super().__init__()
        self.config = config
        self.axes = axes
        self.scale: float | None = None
        """Of the logits; None is 1/sqrt(head size)."""
        self.o_proj: nn.Linear

    @abstractmethod
    def make(self, hidden_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, N, T, H], keys [B, K, T, H] and values [B, K, T, V], rotated by these tables."""

    def forward(self, hidden_BTD: Tensor, learns: LearningPass | None = None) -> Tensor:
        """Return the attention output [B, T, D]; position t sees positions 0..t, and what a cache holds before.

        Args:
            hidden_BTD: hidden states of this rank's tokens.
            learns: of a training pass; its documents are those of the whole sequences, whoever shares their tokens.
        """
        if self.axes.sequence.size > 1 and not is_inferring():
            return self._forward_shared(hidden_BTD, learns)
        T = hidden_BTD.shape[1]
        cache = current_cache()
        begun = cache if cache is not None and bool(cache.lengths_B.any()) else None
        if begun:
            cos, sin = begun.once((T, "rotary"), lambda: self._rotary_tables(begun, T, hidden_BTD.device))
        else:
            cos, sin = rotary_tables(self.config, T, hidden_BTD.device)
        q_BNTH, k_BKTH, v_BKTV = self.make(hidden_BTD, cos, sin)
        visible = begun.once((T, "visible"), lambda: begun.visible(T, hidden_BTD.device)) if begun else None
        if cache is not None:
            k_BKTH, v_BKTV = cache.extend(self, k_BKTH, v_BKTV)
        mixed_BNTV = self._attend(q_BNTH, k_BKTH, v_BKTV, learns, visible)
        return self.o_proj(mixed_BNTV.transpose(1, 2).flatten(2))

    def _forward_shared(self, hidden_BTD: Tensor, learns: LearningPass | None) -> Tensor:
        """Do the same where this rank has an equal part of each sequence's tokens."""
        axis, T = self.axes.sequence, hidden_BTD.shape[1]
        cos, sin = rotary_tables(self.config, T * axis.size, hidden_BTD.device)
        mine = slice(axis.place * T, (axis.place + 1) * T)
        q_BNTH, k_BKTH, v_BKTV = self.make(hidden_BTD, cos[mine], sin[mine])
        num_heads, num_kv_heads = q_BNTH.shape[1], k_BKTH.shape[1]
        if num_kv_heads % axis.size:  # too few to deal: each rank gets those that its query heads use
            copies = (axis.size if axis.size % num_kv_heads == 0 else num_heads) // num_kv_heads
            k_BKTH, v_BKTV = (x.repeat_interleave(copies, dim=1) for x in (k_BKTH, v_BKTV))
        q, k, v = (tokens_for_heads(x, axis) for x in (q_BNTH, k_BKTH, v_BKTV))
        mixed_BNTV = heads_for_tokens(self._attend(q, k, v, learns), axis)
        return self.o_proj(mixed_BNTV.transpose(1, 2).flatten(2))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, learns: LearningPass | None, visible: Tensor | None = None
    ) -> Tensor:
        if learns is None:
            return attend(q, k, v, visible=visible, scale=self.scale)
        return attend(q, k, v, visible=visible, scale=self.scale, documents=learns.documents, wanted=learns.attention)

    def _rotary_tables(self, begun: KeyValueCache, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rows of the rotary tables for the next tokens of sequences, [B, 1, T, H] each."""
        positions_BT = begun.positions(num_tokens, device)
        cos_TH, sin_TH = rotary_tables(self.config, begun.capacity_tokens, device)
        return cos_TH[positions_BT][:, None], sin_TH[positions_BT][:, None]


class Attention(CausalAttention):
    """Causal grouped-query attention (arXiv:2305.13245) with rotary positions."""

    def __init__(self, config: ModelConfig, axes: Axes = ALONE) -> None:
        super().__init__(config, axes)
        self.head_size = config.attention_head_size
        queries, keys = config.num_heads * self.head_size, config.num_kv_heads * self.head_size
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_size, config.norm_epsilon) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_size, config.norm_epsilon) if config.qk_norm else None

    def make(self, hidden_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values; see `CausalAttention.make`."""
        q_BTNH, k_BTKH, v_BTKH = (
            project(hidden_BTD).unflatten(-1, (-1, self.head_size))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        q_BNTH, k_BKTH = (rotate(x.transpose(1, 2), cos, sin) for x in (q_BTNH, k_BTKH))
        return q_BNTH, k_BKTH, v_BTKH.transpose(1, 2)


class LatentAttention(CausalAttention):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1, equations 9 to 19).

    Keys and values are made in full and run by the same kernels as any others; parameter names are those of Hugging
    Face's DeepSeek-V3.
    """

    def __init__(self, config: ModelConfig, axes: Axes = ALONE) -> None:
        super().__init__(config, axes)
        latent = config.latent_attention
        assert latent is not None
        self.latent = latent
        D, N = config.hidden_size, config.num_heads
        queries = N * (latent.head_size + latent.rope_head_size)
        if latent.query_rank is None:
            self.q_proj = nn.Linear(D, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(D, latent.query_rank, bias=False)
            self.q_a_layernorm = RMSNorm(latent.query_rank, _LATENT_EPSILON)
            self.q_b_proj = nn.Linear(latent.query_rank, queries, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(D, latent.kv_rank + latent.rope_head_size, bias=False)
        self.kv_a_layernorm = RMSNorm(latent.kv_rank, _LATENT_EPSILON)
        self.kv_b_proj = nn.Linear(latent.kv_rank, N * (latent.head_size + latent.value_head_size), bias=False)
        self.o_proj = nn.Linear(N * latent.value_head_size, D, bias=False)
        yarn = config.yarn
        if yarn is not None and yarn.mscale_all_dim and yarn.factor > 1:
            scale = 0.1 * yarn.mscale_all_dim * math.log(yarn.factor) + 1
            self.scale = scale * scale / math.sqrt(latent.head_size + latent.rope_head_size)

    def make(self, hidden_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values; see `CausalAttention.make`."""
        latent, N = self.latent, self.config.num_heads
        if latent.query_rank is None:
            q_BTX = self.q_proj(hidden_BTD)
        else:
            q_BTX = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_BTD)))
        q_BNTX = q_BTX.unflatten(-1, (N, -1)).transpose(1, 2)
        q_plain, q_turned = q_BNTX.split([latent.head_size, latent.rope_head_size], dim=-1)
        small_BTX = self.kv_a_proj_with_mqa(hidden_BTD)
        kv_BTC, k_turned_BTH = small_BTX.split([latent.kv_rank, latent.rope_head_size], dim=-1)
        kv_BNTX = self.kv_b_proj(self.kv_a_layernorm(kv_BTC)).unflatten(-1, (N, -1)).transpose(1, 2)
        k_plain, v_BNTV = kv_BNTX.split([latent.head_size, latent.value_head_size], dim=-1)
        q_turned = rotate(_pairs_apart(q_turned), cos, sin)
        k_turned = rotate(_pairs_apart(k_turned_BTH)[:, None], cos, sin).expand(-1, N, -1, -1)
        return torch.cat([q_plain, q_turned], dim=-1), torch.cat([k_plain, k_turned], dim=-1), v_BNTV


def _pairs_apart(x: Tensor) -> Tensor:
    """Return x with the pairs that are rotated together at (i, i + H/2): DeepSeek's weights have them at (2i, 2i + 1).

    Queries and keys are reordered alike, so their products stay.
    """
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def make_attention(config: ModelConfig, axes: Axes = ALONE) -> CausalAttention:
    """Return the kind of attention that the model has."""
    return Attention(config, axes) if config.latent_attention is None else LatentAttention(config, axes)
