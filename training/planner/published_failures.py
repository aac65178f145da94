"""Published times between failures, each beside what the planner's rates say of it. No torch.

What goes in is published too, or named as an assumption; nothing is fitted to the figure it is compared with, unless
the row says so.
"""

from collections.abc import Callable
from dataclasses import dataclass

from training.config.reliability_schema import ReliabilityConfig
from training.planner.reliability import interruptions_of


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFigure:
    """One published figure and how the planner arrives at its own."""

    source: str
    what: str
    """With its unit."""
    given: str
    """What went in."""
    published: float
    predict: Callable[[], float]
    is_bound: bool = False
    """Whether only "more than" is published."""
    remark: str = ""


def _mtbf_hours(devices: int, *, node_rate: float, job_rate: float = 0.0) -> Callable[[], float]:
    reliability = ReliabilityConfig(failures_per_1000_node_days=node_rate, job_failures_per_day=job_rate)
    job = interruptions_of(reliability, num_nodes=devices // 8, devices_per_node=8, reload_seconds=0.0)
    return lambda: job.mtbf_seconds / 3600


def two_rates(small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Return failures per 1,000 node-days and per day of any job under which two jobs have their measured MTBF.

    Args:
        small: (nodes, hours between failures) of one job.
        large: the same of a larger one.
    """
    (few, few_hours), (many, many_hours) = small, large
    per_node = (24 / many_hours - 24 / few_hours) / (many - few)
    return 1000 * per_node, 24 / few_hours - per_node * few


def mtbf_figures() -> list[PublishedFigure]:
    """Return figures of the time between failures."""
    meta, ft = "Meta RSC-1 (arXiv:2410.21680)", "Meta FT-HSDP (arXiv:2602.00277)"
    alone, hours = "6.50 failures per 1,000 node-days", "hours between failures,"
    node_rate, job_rate = two_rates((128, 7.9), (2048, 1.8))
    both = f"{node_rate:.2f} per 1,000 node-days and {job_rate:.2f} a day of any job, fitted to 1,024 and 16,384 GPUs"
    defaults = ReliabilityConfig()
    ours = (
        f"our defaults, of Llama 3: {defaults.failures_per_1000_node_days:g} per 1,000 node-days and "
        f"{defaults.job_failures_per_day:g} a day"
    )
    own = {"node_rate": defaults.failures_per_1000_node_days, "job_rate": defaults.job_failures_per_day}

    def figure(source: str, devices: int, given: str, published: float, remark: str, **rates: float) -> PublishedFigure:
        return PublishedFigure(
            source=source,
            what=f"{hours} {devices:,} GPUs",
            given=given,
            published=published,
            predict=_mtbf_hours(devices, **rates),
            remark=remark,
        )

    fails = "a rate of nodes alone does not hold"
    return [
        figure(meta, 16_384, alone, 1.8, "Meta's own projection by this formula", node_rate=6.50),
        figure(meta, 131_072, alone, 0.23, "Meta's own projection by this formula", node_rate=6.50),
        figure(meta, 1024, alone, 7.9, f"measured; {fails}", node_rate=6.50),
        figure(meta, 8, alone, 47.7 * 24, f"measured; {fails}", node_rate=6.50),
        figure(meta, 131_072, both, 0.23, "left out of the fit", node_rate=node_rate, job_rate=job_rate),
        figure(
            meta,
            8,
            both,
            47.7 * 24,
            "left out; no claim for jobs this small",
            node_rate=node_rate,
            job_rate=job_rate,
        ),
        figure(ft, 32_768, "2.3 per 1,000 node-days", 2.6, "measured", node_rate=2.3),
        figure(ft, 98_304, "2.3 per 1,000 node-days", 0.3, "measured; three times worse than linear", node_rate=2.3),
        figure(ft, 32_768, ours, 2.6, "another cluster's rates", **own),
        figure(meta, 16_384, ours, 1.8, "another cluster's rates", **own),
        figure(ft, 98_304, ours, 0.3, "another cluster's rates", **own),
        PublishedFigure(
            source="OPT-175B (metaseq chronicles)",
            what="days of the longest run without a failure",
            given="2 machines down a day, 90 restarts; the longest of 90 exponential times",
            published=2.8,
            predict=lambda: 0.5 * sum(1 / place for place in range(1, 91)),
        ),
    ]
