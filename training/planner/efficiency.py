"""How much of a data sheet's figures a program gets: the constants of devices and links, shared by all programs.

They are fitted by `python -m training.planner.fit` on the calibration rows of `planner/published` and rounded, but for
those whose source is named.
"""

import re
from dataclasses import dataclass
from statistics import median

from training.planner.job import Device, NumberFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A family of accelerators."""

    word: str
    """In the device's name."""
    ceilings: dict[NumberFormat, float]
    """Best measured matrix product over the data sheet's peak (stas00/ml-engineering, compute/accelerator, "maximum
    achievable matmul FLOPS")."""
    multiprocessors: int
    """Streaming multiprocessors or compute units (data sheets)."""
    usual_watts: float
    """Power at which the ceilings were measured (data sheets)."""
    is_ampere: bool = False


def _architecture(
    word: str,
    multiprocessors: int,
    usual_watts: float,
    bf16: float,
    fp8: float | None = None,
    *,
    is_ampere: bool = False,
) -> Architecture:
    ceilings = {NumberFormat.bf16: bf16} | ({NumberFormat.fp8: fp8} if fp8 else {})
    return Architecture(
        word=word, ceilings=ceilings, multiprocessors=multiprocessors, usual_watts=usual_watts, is_ampere=is_ampere
    )


ARCHITECTURES = (
    _architecture("A100", 108, 400, 271.2 / 312, is_ampere=True),
    _architecture("A800", 108, 400, 271.2 / 312, is_ampere=True),
    _architecture("H100", 132, 700, 794.5 / 989, 1402.6 / 1979),
    _architecture("H800", 132, 700, 794.5 / 989, 1402.6 / 1979),
    _architecture("H200", 132, 700, 794.5 / 989, 1453.4 / 1979),
    _architecture("GB200", 148, 1200, 1822 / 2500, 3615.6 / 5000),
    _architecture("B200", 148, 1000, 1745 / 2250, 3432.5 / 4500),
    _architecture("B300", 148, 1400, 1769 / 2250, 3353.3 / 4500),
    _architecture("MI300X", 304, 750, 668.4 / 1307.4),
    _architecture("MI325X", 304, 1000, 784.9 / 1300),
    _architecture("MI355X", 256, 1400, 1565 / 2500),
)
"""Known accelerators, by a word of their names."""
USUAL_CEILING = median(architecture.ceilings[NumberFormat.bf16] for architecture in ARCHITECTURES)
"""Best measured product over the peak, of an accelerator that nothing is known of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """Shares and latencies of devices and links."""

    gemm_sustained: float = 0.865
    """Share of the best measured matrix product that lasts through a step, with power and clocks as in training."""
    ampere_gemm_sustained: float = 0.927
    """The same on A100."""
    gemm_sustained_fp8: float = 0.928
    """The same for fp8."""
    gemm_waves: float = 0.095
    """Tiles, per multiprocessor, that a product loses to its last wave and its start."""
    gemm_inner: float = 46.0
    """Inner size at which a product spends as long on filling and emptying its pipeline as on multiplying."""
    memory: float = 0.754
    """Share of the memory bandwidth that memory-bound kernels reach."""
    node_links: float = 0.78
    """Share of NVLink bandwidth that a collective reaches (bus bandwidth of large messages). Assumed: no row tells it
    apart from the overlap."""
    cluster_links: float = 0.92
    """Share of the network card's bandwidth that a collective reaches. Assumed: headers and flow control."""

    interference: float = 0.664
    """Share of hidden communication's time by which it slows the computation that hides it: both need memory and
    multiprocessors."""
    power_exponent: float = 0.28
    """How compute falls with a device's power limit: clock over power, both relative."""


EFFICIENCY = Efficiency()


def architecture_of(device: Device) -> Architecture | None:
    """Return what is known of a device by its name; nothing of a CPU or an unknown accelerator."""
    words = set(re.split(r"[^A-Z0-9]+", device.name.upper()))
    return next((architecture for architecture in ARCHITECTURES if architecture.word in words), None)


def power_share(device: Device, architecture: Architecture, efficiency: Efficiency) -> float:
    """Return the share of its compute that a device keeps under a power limit below its kind's usual one."""
    if device.power_watts is None:
        return 1.0
    return min(1.0, device.power_watts / architecture.usual_watts) ** efficiency.power_exponent
