"""The process groups of a layout's axes, made by every rank in the same order."""

import torch.distributed as dist

from training.engine.process_group import ProcessGroup, my_group
from training.models.axes import Axes, Axis
from training.parallel.layout import Layout


def axes_of(layout: Layout, processes: ProcessGroup) -> Axes:
    """Return this rank's places on the axes that reach into layers, with their groups; collective over the world."""
    rank = processes.rank
    sequence = expert = Axis()
    if layout.sequence > 1:
        group = my_group(layout.sequence_groups(), rank=rank)
        sequence = Axis(layout.sequence, layout.sequence_part_of(rank), group)
    if layout.expert > 1:
        group = my_group(layout.expert_groups(), rank=rank)
        expert = Axis(layout.expert, layout.shard_of(rank) % layout.expert, group)
    return Axes(sequence=sequence, expert=expert)


def sharding_group(groups: list[list[int]], processes: ProcessGroup) -> dist.ProcessGroup:
    """Return the one that this rank is in, of groups that are all ranks together; collective over the world."""
    group = my_group(groups, rank=processes.rank)
    assert group is not None
    return group
