"""Operator -> seconds, by a roofline whose roof is what was measured. No torch."""

from training.planner.efficiency import USUAL_CEILING, Efficiency, architecture_of, power_share
from training.planner.job import Device, NumberFormat
from training.planner.operators import Attention, Gemm
from training.planner.software import AttentionKernel

_TILE = 128 * 256
"""Elements of the result that one multiprocessor makes at a time (cuBLAS and CUTLASS on A100 and H100)."""
_BYTES = {NumberFormat.fp8: 1, NumberFormat.bf16: 2, NumberFormat.fp32: 4}


def gemm_seconds(gemm: Gemm, device: Device, efficiency: Efficiency) -> float:
    """Return the time of matrix products, all `count` of them one after the other or as one grouped kernel.

    The roof is the best measured product, or the peak of a device that nothing is known of; a shape falls short of it
    by its last wave of tiles (m, n) and by filling and draining the pipeline along the inner size (k). A product that
    reads and writes more than it multiplies is bound by memory.
    """
    flops = gemm.flops
    if not flops:
        return 0.0
    roof = product_roof(gemm.number_format, device, efficiency)
    architecture = architecture_of(device)
    if architecture is not None:
        waves = gemm.m * gemm.n * gemm.count / (_TILE * architecture.multiprocessors)
        roof *= waves / (waves + efficiency.gemm_waves) * gemm.k / (gemm.k + efficiency.gemm_inner)
    operand = _BYTES[gemm.number_format]
    result = max(operand, 2)  # fp8 products write bf16
    moved = gemm.count * (operand * gemm.k * (gemm.m + gemm.n) + result * gemm.m * gemm.n)
    return max(flops / roof, traffic_seconds(moved, device, efficiency))


def product_roof(number_format: NumberFormat, device: Device, efficiency: Efficiency) -> float:
    """Return the FLOP/s of the largest matrix products through a whole step."""
    peak = device.peak_flops[number_format]
    architecture = architecture_of(device)
    if number_format is NumberFormat.fp32:
        return peak * efficiency.gemm_sustained
    if architecture is None:
        return peak * USUAL_CEILING * efficiency.gemm_sustained
    if architecture.is_ampere:
        sustained = efficiency.ampere_gemm_sustained
    else:
        fp8 = number_format is NumberFormat.fp8
        sustained = efficiency.gemm_sustained_fp8 if fp8 else efficiency.gemm_sustained
    ceiling = architecture.ceilings.get(number_format, architecture.ceilings[NumberFormat.bf16])
    return peak * ceiling * sustained * power_share(device, architecture, efficiency)


def attention_seconds(
    attention: Attention, kernel: AttentionKernel, device: Device, efficiency: Efficiency
) -> tuple[float, float]:
    """Return the times of forward and backward.

    A fused kernel skips the masked half, and computes the scores again in backward: 2.5 times forward's FLOPs
    (FlashAttention-2, arXiv:2307.08691, section 4.1). One that is not fused computes all scores, as matrix products,
    and moves them through memory.
    """
    if kernel.is_fused:
        roof = _attention_roof(attention, kernel, device, efficiency)
        flops = attention.full_flops / 2
        return flops / roof, 2.5 * flops / (roof * kernel.backward_share)
    products = attention.full_flops / product_roof(attention.number_format, device, efficiency)
    scores = attention.queries * attention.keys * attention.heads
    forward_bytes, backward_bytes = (scores * each for each in kernel.score_bytes)
    forward = products / kernel.share_of_peak + traffic_seconds(forward_bytes, device, efficiency)
    return forward, 2 * products / kernel.share_of_peak + traffic_seconds(backward_bytes, device, efficiency)


def traffic_seconds(moved_bytes: float, device: Device, efficiency: Efficiency) -> float:
    """Return the time of memory-bound kernels that move so many bytes."""
    return moved_bytes / (device.memory_bandwidth * efficiency.memory)


def _attention_roof(attention: Attention, kernel: AttentionKernel, device: Device, efficiency: Efficiency) -> float:
    peak = device.peak_flops[attention.number_format]
    architecture = architecture_of(device)
    if architecture is None:
        return peak * kernel.share_of_peak
    share = kernel.ampere_share_of_peak if architecture.is_ampere else kernel.share_of_peak
    started = attention.keys / (attention.keys + kernel.keys_half)
    return peak * power_share(device, architecture, efficiency) * share * started
