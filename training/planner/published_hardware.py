"""The accelerators and networks that published runs name, by their data sheets. No torch."""

from training.errors import ConfigError
from training.planner.job import Device, Network, NumberFormat

_GIB = 2**30
_EFA_STEP_SECONDS = 41e-6
"""Of a ring's step over AWS' network: the sweep's measured all-gathers of 1 GiB take 41 µs longer for each member more
(columns of its CSV, 32 to 512 GPUs, the runs without a pipeline)."""
_EFA_CARD_BANDWIDTH = 43e9
"""Bytes per second of one device's four cards there: eight times this, and the planner's share of it that collectives
reach, are the 320 GB/s a node that those all-gathers come to without latency."""


def _device(name: str, bf16: float, fp8: float | None, gib: float, terabytes: float, watts: float) -> Device:
    peak = {NumberFormat.bf16: bf16 * 1e12} | ({NumberFormat.fp8: fp8 * 1e12} if fp8 else {})
    return Device(
        name=name,
        peak_flops=peak,
        memory_bytes=gib * _GIB,
        memory_bandwidth=terabytes * 1e12,
        power_watts=watts,
    )


# In a row's name the first of these that all of whose words are in it. Memory is what the driver reports, in GiB.
DEVICES: tuple[tuple[tuple[str, ...], Device], ...] = (
    (("A100", "40GB"), _device("A100 40GB", 312, None, 39.4, 1.555, 400)),
    (("A100",), _device("A100 80GB", 312, None, 79.2, 2.0, 400)),
    (("AMPERE",), _device("A100 80GB", 312, None, 79.2, 2.0, 400)),
    # Meta's, for Grand Teton: HBM2e and 500 W (torchtitan's benchmark notes).
    (("H100", "HBM2E"), _device("H100 96GB HBM2e", 989, 1979, 95.0, 2.4, 500)),
    (("H100",), _device("H100 80GB", 989, 1979, 79.2, 3.35, 700)),
    (("H800",), _device("H800 80GB", 989, 1979, 79.2, 3.35, 700)),
    (("H200",), _device("H200 141GB", 989, 1979, 139.8, 4.8, 700)),
    (("GB300",), _device("GB300 288GB", 2500, 5000, 276.0, 8.0, 1400)),
    (("GB200",), _device("GB200 186GB", 2500, 5000, 184.0, 8.0, 1200)),
    (("B300",), _device("B300 288GB", 2250, 4500, 268.0, 8.0, 1400)),
    (("B200",), _device("B200 180GB", 2250, 4500, 179.0, 8.0, 1000)),
    (("MI300X",), _device("MI300X 192GB", 1307.4, 2614.9, 191.5, 5.3, 750)),
    (("MI355X",), _device("MI355X 288GB", 2500, 5000, 287.0, 8.0, 1400)),
)
_NODE_BANDWIDTH = {"A100": 300e9, "H100": 450e9, "H800": 160e9, "H200": 450e9, "MI300X": 448e9, "MI355X": 535.5e9}
"""NVLink or Infinity Fabric, bytes per second and direction of one device; 900 GB/s on the rest."""
_CARD_GIGABITS = {"A100": 200.0}
"""Of the usual node's network card for each device, where a row does not say; 400 Gb/s on the rest."""


def device_named(name: str) -> Device:
    """Return the accelerator that a published row names.

    Raises:
        ConfigError: it is not among the known ones.
    """
    upper = name.upper()
    for words, device in DEVICES:
        if all(word in upper for word in words):
            return device
    known = ", ".join(" ".join(words) for words, _ in DEVICES)
    raise ConfigError("gpu", name, "no such device is known", f"one whose name has the words of: {known}")


def network_between(device: Device, *, devices_per_node: int, card_gigabits: float | None) -> Network:
    """Return the network of a cluster of such devices.

    Args:
        device: the accelerator.
        devices_per_node: of one node.
        card_gigabits: per second, of one device's network card; None takes the usual one.
    """
    word = device.name.split()[0]
    card = card_gigabits if card_gigabits is not None else _CARD_GIGABITS.get(word, 400.0)
    return Network(
        devices_per_node=devices_per_node,
        node_bandwidth=_NODE_BANDWIDTH.get(word, 900e9),
        cluster_bandwidth=card / 8 * 1e9,
    )


def aws_p5() -> Network:
    """Return the network of the nanotron sweep: 8 H100 and 32 cards of 100 Gb/s a node, as its all-gathers show it."""
    return Network(
        devices_per_node=8,
        node_bandwidth=450e9,
        cluster_bandwidth=_EFA_CARD_BANDWIDTH,
        cluster_latency_seconds=_EFA_STEP_SECONDS,
    )
