"""Attention over queries, keys and values that are made already: torch's fused kernels.

Shapes: B sequences, N query heads, K key/value heads, T tokens, S places that keys stand at, H head size, V a value's.
"""

import torch.nn.functional as F
from torch import Tensor


def attend(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSV: Tensor, *, visible: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Return softmax(scale·q·k)·v, [B, N, T, V]; query heads share key/value heads in turn where there are fewer.

    Args:
        q_BNTH: queries.
        k_BKSH: keys.
        v_BKSV: values.
        visible: which places each query sees, bool [B, 1, T, S]; None is causal, and T = S.
        scale: of the logits; None is 1/sqrt(H).
    """
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
