"""Attention within documents on accelerators: FlexAttention with a block mask, and FlashAttention over packed lengths.

Neither needs memory that grows with the square of the sequence; both skip what no query sees. Kernels for attention
within documents on CPU, where neither learns, are those of `training/models/attend.py`.

Shapes: B sequences, N query heads, K key/value heads, T tokens, H head size, V a value's, R rows of blocks.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from training.models.documents import Documents

BLOCK_TOKENS = 128
"""Queries, and keys, of one block of FlexAttention's mask (torch's own default)."""


def flex_attend(
    q_BNTH: Tensor,
    k_BKTH: Tensor,
    v_BKTV: Tensor,
    documents: Documents,
    *,
    scale: float | None,
    kernel: Callable[..., Any] | None = None,
) -> Tensor:
    """Return causal attention within documents, [B, N, T, V], by FlexAttention (arXiv:2412.05496).

    Args:
        q_BNTH: queries.
        k_BKTH: keys.
        v_BKTV: values.
        documents: of these sequences.
        scale: of the logits; None is 1/sqrt(H).
        kernel: None is torch's flex_attention, compiled: only so are scores kept off memory.
    """
    device, kernel = q_BNTH.device, kernel or _compiled_flex_attention()
    mask = documents.once(("block mask", device), lambda: block_mask(documents, device))
    return kernel(q_BNTH, k_BKTH, v_BKTV, block_mask=mask, scale=scale, enable_gqa=k_BKTH.shape[1] < q_BNTH.shape[1])


def flash_attend(
    q_BNTH: Tensor,
    k_BKTH: Tensor,
    v_BKTV: Tensor,
    documents: Documents,
    *,
    scale: float | None,
    kernel: Callable[..., Any] | None = None,
) -> Tensor:
    """Return causal attention within documents, [B, N, T, V], by FlashAttention-2 (arXiv:2307.08691) in bf16.

    All documents of all sequences follow each other, each with a length of its own.

    Args:
        q_BNTH: queries.
        k_BKTH: keys.
        v_BKTV: values.
        documents: of these sequences.
        scale: of the logits; None is 1/sqrt(H).
        kernel: None is torch's varlen_attn.
    """
    device, num_sequences, kernel = q_BNTH.device, len(q_BNTH), kernel or _varlen_attention()
    H, V = k_BKTH.shape[-1], v_BKTV.shape[-1]
    if V < H:  # the kernel takes one size only
        v_BKTV = F.pad(v_BKTV, (0, H - V))
    starts, longest = documents.once(("starts", device), lambda: _starts(documents, device))
    packed = (x.transpose(1, 2).flatten(0, 1) for x in (q_BNTH, k_BKTH, v_BKTV))
    mixed = kernel(
        *packed,
        starts,
        starts,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),  # causal
        enable_gqa=k_BKTH.shape[1] < q_BNTH.shape[1],
    )
    return mixed.unflatten(0, (num_sequences, -1)).transpose(1, 2)[..., :V]


def block_mask(documents: Documents, device: torch.device) -> BlockMask:
    """Return FlexAttention's mask, made from the ends of blocks: torch's own `create_block_mask` makes a [T, T] first.

    Documents are numbered in order, so a block of keys has something for a block of queries if the number of its last
    token is at least that of the queries' first; all of it is seen if it lies before and all numbers are the same.
    """
    numbers_BT = documents.numbers_BT.to(device)
    num_tokens = documents.num_tokens
    first_BR, last_BR = numbers_BT[:, ::BLOCK_TOKENS], numbers_BT[:, BLOCK_TOKENS - 1 :: BLOCK_TOKENS]
    num_complete = last_BR.shape[1]
    if num_complete < first_BR.shape[1]:
        last_BR = torch.cat([last_BR, numbers_BT[:, -1:]], dim=1)
    place_R = torch.arange(first_BR.shape[1], device=device)
    any_BRR = (last_BR[:, None, :] >= first_BR[:, :, None]) & (place_R[None, :] <= place_R[:, None])
    all_BRR = (first_BR[:, None, :] == last_BR[:, :, None]) & (place_R[None, :] < place_R[:, None])
    all_BRR = all_BRR & (place_R[:, None] < num_complete)
    some_counts, some_places = _ordered(any_BRR & ~all_BRR)
    all_counts, all_places = _ordered(all_BRR)

    def sees(sequence: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (numbers_BT[sequence, query] == numbers_BT[sequence, key])

    return BlockMask.from_kv_blocks(
        some_counts,
        some_places,
        all_counts,
        all_places,
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=sees,
        seq_lengths=(num_tokens, num_tokens),
    )


@lru_cache(maxsize=1)
def _varlen_attention() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn  # takes 0.8 s, which most runs need not spend

    return varlen_attn


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def _ordered(chosen_BRR: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks each row has chosen, and their places first; int32, [B, 1, R] and [B, 1, R, R]."""
    counts_BR = chosen_BRR.sum(-1, dtype=torch.int32)
    places_BRR = torch.argsort(chosen_BRR.int(), dim=-1, descending=True, stable=True)
    return counts_BR[:, None], places_BRR.to(torch.int32)[:, None]


def _starts(documents: Documents, device: torch.device) -> tuple[Tensor, int]:
    """Return where each document begins among all tokens, with the end as last entry, and the longest's tokens."""
    lengths = [length for row in documents.lengths for length in row]
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    torch.cumsum(torch.tensor(lengths), 0, dtype=torch.int32, out=starts[1:])
    return starts.to(device), max(lengths)
