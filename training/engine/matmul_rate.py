"""The matrix-multiply rate of this device: the peak that MFU refers to where the config names none."""

import time

import torch


def measured_matmul_rate(device: torch.device, dtype: torch.dtype, *, size: int = 1024, repeats: int = 5) -> float:
    """Return the best of some square matrix products, in FLOPs per second.

    All ranks measure at the same time, so cores they share are not counted twice.
    """
    left, right = torch.randn(2, size, size).to(device, dtype)
    best_seconds = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        (left @ right).sum().item()
        best_seconds = min(best_seconds, time.perf_counter() - started)
    return 2 * size**3 / best_seconds
