"""Operator -> seconds, by a roofline whose roof is what was measured. No torch."""

from training.planner.efficiency import Efficiency, gemm_ceiling, is_ampere, multiprocessors, power_share
from training.planner.job import Device, NumberFormat
from training.planner.operators import ACTIVATION_BYTES, Attention, Gemm
from training.planner.software import AttentionKernel

_TILE = 128 * 256
"""Elements of the result that one multiprocessor makes at a time (cuBLAS and CUTLASS on A100 and H100)."""


def gemm_seconds(gemm: Gemm, device: Device, efficiency: Efficiency, *, hopper_factor: float = 1.0) -> float:
    """Return the time of matrix products, all `count` of them one after the other or as one grouped kernel.

    The roof is the best measured product; a shape falls short of it by its last wave of tiles (m, n) and by filling and
    draining the pipeline along the inner size (k). A product that reads and writes more than it multiplies is bound by
    memory.
    """
    flops = gemm.flops
    if not flops:
        return 0.0
    waves = gemm.m * gemm.n * gemm.count / (_TILE * multiprocessors(device))
    shape = waves / (waves + efficiency.gemm_waves) * gemm.k / (gemm.k + efficiency.gemm_inner)
    fp8 = gemm.number_format is NumberFormat.fp8
    if is_ampere(device):
        sustained = efficiency.ampere_gemm_sustained
    else:
        sustained = hopper_factor * (efficiency.gemm_sustained_fp8 if fp8 else efficiency.gemm_sustained)
    roof = device.peak_flops[gemm.number_format] * gemm_ceiling(device, gemm.number_format) * sustained
    operand = 1 if fp8 else ACTIVATION_BYTES
    moved = gemm.count * (operand * gemm.k * (gemm.m + gemm.n) + ACTIVATION_BYTES * gemm.m * gemm.n)
    compute_seconds = flops / (roof * power_share(device, efficiency) * shape)
    return max(compute_seconds, traffic_seconds(moved, device, efficiency))


def attention_seconds(
    attention: Attention, kernel: AttentionKernel, device: Device, efficiency: Efficiency
) -> tuple[float, float]:
    """Return the times of forward and backward.

    A fused kernel skips the masked half, and computes the scores again in backward: 2.5 times forward's FLOPs
    (FlashAttention-2, arXiv:2307.08691, section 4.1). One that is not fused computes all scores, as matrix products, and
    moves them through memory.
    """
    peak = device.peak_flops[NumberFormat.bf16] * power_share(device, efficiency)
    if kernel.is_fused:
        flops = attention.full_flops / 2
        share = kernel.ampere_share_of_peak if is_ampere(device) else kernel.share_of_peak
        narrow = min(1.0, attention.head_size / 128) ** efficiency.narrow_head_exponent
        roof = peak * share * narrow * attention.keys / (attention.keys + kernel.keys_half)
        return flops / roof, 2.5 * flops / (roof * kernel.backward_share)
    scores = attention.queries * attention.keys * attention.heads
    products = attention.full_flops / (peak * gemm_ceiling(device, NumberFormat.bf16) * kernel.share_of_peak)
    forward_bytes, backward_bytes = (scores * each for each in kernel.score_bytes)
    forward = products + traffic_seconds(forward_bytes, device, efficiency)
    return forward, 2 * products + traffic_seconds(backward_bytes, device, efficiency)


def traffic_seconds(moved_bytes: float, device: Device, efficiency: Efficiency) -> float:
    """Return the time of memory-bound kernels that move so many bytes."""
    return moved_bytes / (device.memory_bandwidth * efficiency.memory)
