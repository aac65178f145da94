"""A training stage's config -> the program of every rank, phase by phase. No torch.

Ranks of one pipeline stage run one text with other group members, so there are as many texts as pipeline stages; more
only where shards of a tied weight differ in size at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from training.rehearsal.buckets import partition_numel, shard_numel
from training.rehearsal.grid import GroupKind
from training.rehearsal.operations import Collective, CollectiveKind, Program, all_reduce, new_groups
from training.rehearsal.pipeline_program import pipeline_start, pipeline_step
from training.rehearsal.plan import Plan
from training.rehearsal.zero_program import without_pipeline


class Phase(StrEnum):
    """Parts of a run that are executed one after the other."""

    meeting = "meeting"
    """Making the groups of the job itself (training/engine/process_group.py, training/composition.py)."""
    start = "start"
    """Making the engine."""
    first_step = "first step"
    second_step = "second step"
    step = "step"
    """Any later one."""
    save = "save"
    """Writing a checkpoint, on a thread of its own."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What all ranks run in one phase."""

    texts: tuple[Program, ...]
    text_of_rank: NDArray[np.int32]

    def of(self, rank: int) -> Program:
        """Return a rank's program."""
        return self.texts[self.text_of_rank[rank]]


def build_programs(plan: Plan) -> dict[Phase, Texts]:
    """Return what all ranks run, phase by phase."""
    save = (all_reduce(GroupKind.checkpoint, 1, "int64", "bytes to be written"),) + 3 * (
        all_reduce(GroupKind.checkpoint, 1, "int64", "have all ranks succeeded"),
    )
    own_groups = new_groups(plan.grid, [GroupKind.world_cpu, GroupKind.checkpoint])
    shared = {
        Phase.meeting: Texts((tuple(own_groups),), np.zeros(plan.grid.world_size, np.int32)),
        Phase.save: Texts((save,), np.zeros(plan.grid.world_size, np.int32)),
    }
    if not plan.layout.runs_in_chunks:
        every = np.zeros(plan.grid.world_size, np.int32)
        phases = (Phase.start, Phase.first_step, Phase.second_step, Phase.step)
        texts = (Texts((_of_many(plan, text),), every) for text in without_pipeline(plan))
        return {**shared, **dict(zip(phases, texts, strict=True))}
    step = _by_tied_part(plan, lambda stage, tied: pipeline_step(plan, stage, tied))
    return {
        **shared,
        Phase.start: _by_pipeline_stage(plan, lambda stage: pipeline_start(plan, stage)),
        Phase.first_step: step,
        Phase.second_step: step,
        Phase.step: step,
    }


def _of_many(plan: Plan, text: Program) -> Program:
    """Return a program without the collectives of groups of one: nobody waits there, and DeepSpeed leaves some out."""
    kinds = {op.group for op in text if isinstance(op, Collective)}
    alone = {kind for kind in kinds if plan.grid.groups(kind).shape[1] == 1}
    return tuple(
        op
        for op in text
        if not isinstance(op, Collective) or op.kind is CollectiveKind.new_group or op.group not in alone
    )


def _by_pipeline_stage(plan: Plan, text: Callable[[int], Program]) -> Texts:
    grid = plan.grid
    stages = np.arange(grid.world_size, dtype=np.int32) * np.int64(grid.pipeline) // grid.world_size
    return Texts(tuple(_of_many(plan, text(stage)) for stage in range(grid.pipeline)), stages.astype(np.int32))


def _by_tied_part(plan: Plan, text: Callable[[int, int | None], Program]) -> Texts:
    """Return texts by pipeline stage and, where a tied weight is, by how much of it a rank holds."""
    grid = plan.grid
    held = _tied_parts(plan)
    keys: dict[tuple[int, int | None], int] = {}
    text_of_rank = np.empty(grid.world_size, np.int32)
    rows = text_of_rank.reshape(grid.pipeline, grid.num_shards, grid.tensor)
    for stage in range(grid.pipeline):
        has_tied = held is not None and stage in (0, grid.pipeline - 1)
        for numel in np.unique(held).tolist() if held is not None and has_tied else [None]:
            # Where ZeRO-1 and 2 have only padding of it, DeepSpeed knows no such gradient.
            told = None if numel == 0 and plan.layout.zero_stage < 3 else numel
            number = keys.setdefault((stage, told), len(keys))
            rows[stage, (held == numel) if numel is not None else slice(None)] = number
    return Texts(tuple(_of_many(plan, text(stage, numel)) for stage, numel in keys), text_of_rank)


def _tied_parts(plan: Plan) -> NDArray[np.int64] | None:
    """Return how many elements of the tied weight each shard holds, padding left out; None if there is none."""
    if not plan.has_tied_copies:
        return None
    numel, shards = plan.layers[0].parameters[0].numel, plan.grid.num_shards
    part = shard_numel(numel, shards) if plan.layout.zero_stage == 3 else partition_numel(numel, shards)
    return np.clip(numel - np.arange(shards, dtype=np.int64) * part, 0, part)
