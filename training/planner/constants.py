"""All constants of the planner's model of time, in one value that a fit can replace."""

from dataclasses import dataclass

from training.planner.efficiency import EFFICIENCY, Efficiency
from training.planner.software import KERNELS, SOFTWARE, AttentionKernel, Software


@dataclass(frozen=True, slots=True)
class Constants:
    """What is shared by all programs, how they compute attention, and the programs."""

    efficiency: Efficiency
    kernels: dict[str, AttentionKernel]
    software: dict[str, Software]


CONSTANTS = Constants(EFFICIENCY, KERNELS, SOFTWARE)
