"""What a run takes in device-hours, money and energy, with how it scatters. No torch.

Everything follows from the simulated runs: whoever books the nodes pays for them, spares included, until the end.
"""

from dataclasses import dataclass

from training.errors import ConfigError
from training.planner.goodput_simulation import Seconds, SimulatedRuns, Spread

_SECONDS_PER_HOUR = 3600.0
_TOKENS_PER_PRICE = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """What a node draws. Power of the devices grows linearly from waiting to computing."""

    device_watts: float
    """Of one device that computes all the time: its data sheet, or what was measured."""
    host_watts: float = 2150.0
    """Of the rest of one node. 8 H100 of 700 W and this are the 7.75 kW, 76 % of 10.2 kW, that training was measured
    to take at most on average (arXiv:2506.14551; the highest moment was 8.4 kW, arXiv:2412.08602)."""
    waiting_share: float = 0.1
    """What a device that waits draws, as a share of device_watts; an assumption, 70 of 700 W."""
    pue: float = 1.2
    """Power usage effectiveness: energy of the whole site by that of its computers, cooling included. Jean Zay's
    (arXiv:2211.02001)."""
    price_per_kwh: float | None = None
    """In the currency of the devices' price; null where that includes it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: a power, share or price out of range.
        """
        for name, least in (("device_watts", 0.0), ("host_watts", 0.0), ("pue", 1.0), ("price_per_kwh", 0.0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(
                    f"cluster.power.{name}",
                    value,
                    f"it is at least {least:g}",
                    f"cluster.power.{name}={least:g} or more",
                )
        if not 0 <= self.waiting_share <= 1:
            raise ConfigError(
                "cluster.power.waiting_share",
                self.waiting_share,
                "a share is from 0 to 1",
                "cluster.power.waiting_share=0.1",
            )

    def node_watts(self, devices_per_node: int, computing_share: float) -> float:
        """Return the power of one node, cooling included.

        Args:
            devices_per_node: devices of the node.
            computing_share: share of the time, 0 to 1, in which they compute.
        """
        devices = self.device_watts * (self.waiting_share + (1 - self.waiting_share) * computing_share)
        return self.pue * (self.host_watts + devices_per_node * devices)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPrice:
    """What a run takes. Prices are in the currency that they were given in; what was not given is not known."""

    device_hours: Spread
    """Of all nodes that are booked, spares included, from start to end."""
    rent: Spread | None
    """Device-hours by their price."""
    energy_megawatt_hours: Spread | None
    """Of devices, hosts and cooling."""
    energy: Spread | None
    """Price of the energy; null also where the rent includes it."""
    total: Spread | None
    """Rent and energy."""
    per_million_tokens: Spread | None
    """Total by trained tokens."""


def run_price(
    runs: SimulatedRuns,
    *,
    num_nodes: int,
    spare_nodes: int,
    devices_per_node: int,
    tokens: float,
    price_per_device_hour: float | None = None,
    power: Power | None = None,
    computing_share: float = 1.0,
) -> RunPrice:
    """Return the device-hours, price and energy of a run.

    Args:
        runs: its simulated runs.
        num_nodes: nodes that work.
        spare_nodes: nodes that stand by and are booked all the time.
        devices_per_node: devices of a node.
        tokens: trained from start to end.
        price_per_device_hour: of one device (cluster.accelerator.price_per_hour); null is not known.
        power: what a node draws; null is not known.
        computing_share: share of a step, 0 to 1, in which a device computes rather than waits for others.
    """
    booked_devices = (num_nodes + spare_nodes) * devices_per_node
    device_hours = Spread.of(runs.end_seconds * (booked_devices / _SECONDS_PER_HOUR))
    rent = device_hours.times(price_per_device_hour) if price_per_device_hour is not None else None
    energy = total = None
    megawatt_hours = None
    if power is not None:
        used = _megawatt_hours(runs, power, num_nodes, spare_nodes, devices_per_node, computing_share)
        megawatt_hours = Spread.of(used)
        if power.price_per_kwh is not None:
            energy = megawatt_hours.times(1000 * power.price_per_kwh)
            if price_per_device_hour is not None:
                # Quantiles do not add up: the sum is taken run by run.
                per_second = booked_devices * price_per_device_hour / _SECONDS_PER_HOUR
                total = Spread.of(runs.end_seconds * per_second + used * 1000 * power.price_per_kwh)
    if energy is None:
        total = rent
    return RunPrice(
        device_hours=device_hours,
        rent=rent,
        energy_megawatt_hours=megawatt_hours,
        energy=energy,
        total=total,
        per_million_tokens=total.times(_TOKENS_PER_PRICE / tokens) if total is not None else None,
    )


def _megawatt_hours(
    runs: SimulatedRuns, power: Power, num_nodes: int, spare_nodes: int, devices_per_node: int, computing_share: float
) -> Seconds:
    """Return the energy of each run. Steps that a failure undid take as much as those that count."""
    training = runs.ledger.compute_seconds + runs.ledger.lost_work_seconds
    waiting = runs.end_seconds - training
    busy_watts = num_nodes * power.node_watts(devices_per_node, computing_share)
    idle_watts = power.node_watts(devices_per_node, 0.0)
    joules = training * busy_watts + waiting * num_nodes * idle_watts + runs.end_seconds * spare_nodes * idle_watts
    return joules / _SECONDS_PER_HOUR / 1e6
