from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.planner.jobs import CPU, H100
from training.planner.efficiency import EFFICIENCY, architecture_of
from training.planner.job import Device, NumberFormat
from training.planner.operators import Attention, Gemm
from training.planner.roofline import attention_seconds, gemm_seconds, product_roof, traffic_seconds
from training.planner.software import KERNELS

SIZES = st.integers(16, 16384)


@given(m=SIZES, n=SIZES, k=SIZES)
def test_no_product_beats_the_best_measured_one_or_memory(m: int, n: int, k: int) -> None:
    gemm = Gemm(m, n, k)
    seconds = gemm_seconds(gemm, H100, EFFICIENCY)
    assert gemm.flops / seconds <= 794.5e12
    assert seconds >= traffic_seconds(2 * (m * k + k * n + m * n), H100, EFFICIENCY) * 0.999


@given(m=SIZES, n=SIZES, k=SIZES)
def test_a_larger_product_takes_longer_but_less_for_each_flop(m: int, n: int, k: int) -> None:
    small, large = Gemm(m, n, k), Gemm(2 * m, n, k)
    small_seconds, large_seconds = (gemm_seconds(gemm, H100, EFFICIENCY) for gemm in (small, large))
    assert small_seconds < large_seconds <= 2 * small_seconds * (1 + 1e-12)


def test_a_large_product_comes_near_the_roof() -> None:
    gemm = Gemm(16384, 16384, 16384)
    share = gemm.flops / gemm_seconds(gemm, H100, EFFICIENCY) / product_roof(NumberFormat.bf16, H100, EFFICIENCY)
    assert 0.97 < share < 1.0


def test_fp8_is_faster_and_a_power_limit_slower() -> None:
    bf16, fp8 = (gemm_seconds(Gemm(8192, 8192, 8192, 1, kind), H100, EFFICIENCY) for kind in list(NumberFormat)[1:])
    assert fp8 < bf16
    limited = replace(H100, power_watts=500)
    assert gemm_seconds(Gemm(8192, 8192, 8192), limited, EFFICIENCY) > bf16


def test_an_unknown_device_is_taken_at_its_data_sheet() -> None:
    assert architecture_of(CPU) is None
    gemm = Gemm(512, 512, 512, 1, NumberFormat.fp32)
    assert gemm.flops / gemm_seconds(gemm, CPU, EFFICIENCY) == pytest.approx(1e11 * EFFICIENCY.gemm_sustained)
    known = Device(name="NVIDIA H200", peak_flops=H100.peak_flops, memory_bytes=1.0, memory_bandwidth=4.8e12)
    assert architecture_of(known) is not None


@pytest.mark.parametrize("name", KERNELS)
def test_attention_grows_with_the_square_of_the_sequence(name: str) -> None:
    kernel = KERNELS[name]

    def seconds(length: int) -> float:
        return sum(attention_seconds(Attention(length, length, 32, 128), kernel, H100, EFFICIENCY))

    # Longer sequences start better, so four times is the most.
    assert 2 * seconds(16384) < seconds(32768) <= 4 * seconds(16384)


def test_a_fused_kernel_is_faster_than_one_that_moves_scores() -> None:
    attention = Attention(4096, 4096, 32, 128)
    fused, unfused = (attention_seconds(attention, KERNELS[name], H100, EFFICIENCY) for name in ("flash_2", "unfused"))
    assert sum(fused) < sum(unfused)
