"""Attention over queries, keys and values that are made already: the choice of a kernel, and torch's fused ones.

Shapes: B sequences, N query heads, K key/value heads, T tokens, S places that keys stand at, H head size, V a value's.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config.schema import AttentionImplementation
from training.models.document_attention import flash_attend, flex_attend
from training.models.documents import Documents

_LARGEST_FLASH_HEAD = 256
"""Head size up to which FlashAttention-2 has kernels (torch 2.13, ATen flash_api.cpp: "head dimension at most 256")."""


def attend(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSV: Tensor,
    *,
    visible: Tensor | None = None,
    scale: float | None = None,
    documents: Documents | None = None,
    wanted: AttentionImplementation = AttentionImplementation.auto,
) -> Tensor:
    """Return softmax(scale·q·k)·v, [B, N, T, V]; query heads share key/value heads in turn where there are fewer.

    Args:
        q_BNTH: queries.
        k_BKSH: keys.
        v_BKSV: values.
        visible: which places each query sees, bool [B, 1, T, S]; None is causal, and T = S.
        scale: of the logits; None is 1/sqrt(H).
        documents: which tokens belong together: a query sees those of its own document alone. Not with `visible`.
        wanted: what is to compute it; with `visible` it is torch's scaled_dot_product_attention.
    """
    if visible is not None:
        return _sdpa(q_BNTH, k_BKSH, v_BKSV, visible, scale)
    B, _, T, H = q_BNTH.shape
    assert documents is None or documents.numbers_BT.shape == (B, T), "documents of other sequences"
    chosen = choose(
        wanted,
        on_cpu=q_BNTH.device.type == "cpu",
        dtype=q_BNTH.dtype,
        head_size=H,
        has_documents=documents is not None,
    )
    if chosen is AttentionImplementation.sdpa:
        return (
            _sdpa(q_BNTH, k_BKSH, v_BKSV, None, scale)
            if documents is None
            else _each_document(q_BNTH, k_BKSH, v_BKSV, documents, scale)
        )
    kernel = flex_attend if chosen is AttentionImplementation.flex else flash_attend
    return kernel(q_BNTH, k_BKSH, v_BKSV, documents or _undivided(B, T), scale=scale)


def choose(
    wanted: AttentionImplementation, *, on_cpu: bool, dtype: torch.dtype, head_size: int, has_documents: bool
) -> AttentionImplementation:
    """Return sdpa, flex or flash: what is wanted, or for `auto` what keeps memory linear and computes least.

    Without documents scaled_dot_product_attention does, whose causal kernel on accelerators is FlashAttention itself.
    On CPU it runs document by document, since torch 2.13 has no backward of FlexAttention there.
    """
    if wanted is not AttentionImplementation.auto:
        return wanted
    if on_cpu or not has_documents:
        return AttentionImplementation.sdpa
    if dtype in (torch.bfloat16, torch.float16) and head_size <= _LARGEST_FLASH_HEAD:
        return AttentionImplementation.flash
    return AttentionImplementation.flex


def _sdpa(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSV: Tensor, visible: Tensor | None, scale: float | None) -> Tensor:
    H, V = k_BKSH.shape[-1], v_BKSV.shape[-1]
    if V < H:  # fused kernels take one size only
        v_BKSV = F.pad(v_BKSV, (0, H - V))
    mixed = F.scaled_dot_product_attention(
        q_BNTH,
        k_BKSH,
        v_BKSV,
        attn_mask=visible,
        is_causal=visible is None,
        scale=scale,
        enable_gqa=k_BKSH.shape[1] < q_BNTH.shape[1],
    )
    return mixed[..., :V] if V < H else mixed


def _each_document(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTV: Tensor, documents: Documents, scale: float | None) -> Tensor:
    """Return causal attention of each document by itself."""
    if len(set(documents.lengths)) == 1:  # all sequences are cut alike, or not at all
        sequences = [((q_BNTH, k_BKTH, v_BKTV), documents.lengths[0])]
    else:
        rows = zip(*(x.split(1) for x in (q_BNTH, k_BKTH, v_BKTV)), strict=True)
        sequences = list(zip(rows, documents.lengths, strict=True))
    mixed = []
    for qkv, lengths in sequences:
        parts = zip(*(x.split(lengths, dim=2) for x in qkv), strict=True)
        mixed.append(torch.cat([_sdpa(q, k, v, None, scale) for q, k, v in parts], dim=2))
    return torch.cat(mixed)


@lru_cache(maxsize=8)
def _undivided(num_sequences: int, num_tokens: int) -> Documents:
    return Documents.whole(num_sequences, num_tokens)
