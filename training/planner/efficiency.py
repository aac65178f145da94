"""How much of a data sheet's figures a program gets: the constants of devices and links, shared by all programs.

They are fitted by `python -m training.planner.fit` on the calibration rows of `planner/published` and rounded, but for
those whose source is named.
"""

from dataclasses import dataclass

from training.planner.job import Device, NumberFormat

_AMPERE = ("A100", "A800")

GEMM_CEILING: dict[str, dict[NumberFormat, float]] = {
    "A100": {NumberFormat.bf16: 271.2 / 312},
    "H100": {NumberFormat.bf16: 794.5 / 989, NumberFormat.fp8: 1402.6 / 1979},
    "H200": {NumberFormat.bf16: 794.5 / 989, NumberFormat.fp8: 1453.4 / 1979},
    "H800": {NumberFormat.bf16: 794.5 / 989, NumberFormat.fp8: 1402.6 / 1979},
    "GB200": {NumberFormat.bf16: 1822 / 2500, NumberFormat.fp8: 3615.6 / 5000},
    "B200": {NumberFormat.bf16: 1745 / 2250, NumberFormat.fp8: 3432.5 / 4500},
    "B300": {NumberFormat.bf16: 1769 / 2250, NumberFormat.fp8: 3353.3 / 4500},
    "MI300X": {NumberFormat.bf16: 668.4 / 1307.4},
    "MI325X": {NumberFormat.bf16: 784.9 / 1300},
    "MI355X": {NumberFormat.bf16: 1565 / 2500},
}
"""Best measured matrix product over the data sheet's peak, by a word of the device's name (stas00/ml-engineering,
compute/accelerator, "maximum achievable matmul FLOPS")."""

MULTIPROCESSORS = {"A100": 108, "H100": 132, "H200": 132, "H800": 132, "GB200": 148, "B200": 148, "B300": 148}
"""Streaming multiprocessors (NVIDIA's architecture white papers); AMD's compute units of MI300X, MI325X, MI355X."""
MULTIPROCESSORS |= {"MI300X": 304, "MI325X": 304, "MI355X": 256}

DESIGN_WATTS = {"A100": 400.0, "H100": 700.0, "H200": 700.0, "H800": 700.0}
"""Power at which the ceilings were measured (data sheets)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """Shares and latencies of devices and links."""

    gemm_sustained: float = 0.90
    """Share of the best measured matrix product that lasts through a step, with power and clocks as in training."""
    ampere_gemm_sustained: float = 0.95
    """The same on A100."""
    gemm_sustained_fp8: float = 0.85
    """The same for fp8."""
    gemm_waves: float = 0.25
    """Tiles, per multiprocessor, that a product loses to its last wave and its start."""
    gemm_inner: float = 250.0
    """Inner size at which a product spends as long on filling and emptying its pipeline as on multiplying."""
    memory: float = 0.80
    """Share of the memory bandwidth that memory-bound kernels reach."""
    node_links: float = 0.78
    """Share of NVLink bandwidth that a collective reaches (bus bandwidth of large messages)."""
    cluster_links: float = 0.92
    """Share of the network card's bandwidth that a collective reaches."""

    narrow_head_exponent: float = 0.3
    """How the speed of fused attention falls with heads narrower than 128."""
    interference: float = 0.4
    """Share of hidden communication's time by which it slows the computation that hides it: both need memory and
    multiprocessors."""
    message_bytes: float = 400e6
    """Of what replicas exchange at the end of a step, what goes in one message: smaller ones follow each other so
    closely that they hide each other's latency."""
    power_exponent: float = 0.4
    """How compute falls with a device's power limit: clock over power, both relative."""


EFFICIENCY = Efficiency()


def gemm_ceiling(device: Device, number_format: NumberFormat) -> float:
    """Return the share of the peak that the best matrix product reaches; of an unknown device, the least known one's.

    fp32 products run on the data sheet's figure for it.
    """
    if number_format is NumberFormat.fp32:
        return 0.9
    for word, ceilings in GEMM_CEILING.items():
        if word in device.name.upper():
            return ceilings.get(number_format, min(ceilings.values()))
    return min(ceilings[NumberFormat.bf16] for ceilings in GEMM_CEILING.values())


def multiprocessors(device: Device) -> int:
    """Return how many multiprocessors a device has; of an unknown one, as many as an H100."""
    return next((count for word, count in MULTIPROCESSORS.items() if word in device.name.upper()), 132)


def power_share(device: Device, efficiency: Efficiency) -> float:
    """Return the share of its compute that a device keeps under a power limit below its kind's usual one."""
    if device.power_watts is None:
        return 1.0
    usual = next((watts for word, watts in DESIGN_WATTS.items() if word in device.name.upper()), device.power_watts)
    return min(1.0, device.power_watts / usual) ** efficiency.power_exponent


def is_ampere(device: Device) -> bool:
    """Return whether a device is an A100, which has constants of its own."""
    return any(word in device.name.upper() for word in _AMPERE)
