"""State, samples, checkpoint and memory of all ranks against the model, the order of samples and the plan. No torch."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.models.rank_memory import RankMemory
from training.models.sizes import num_parameters
from training.planner.stage_memory import StageMemory
from training.rehearsal.findings import Finding
from training.rehearsal.grid import GroupKind, shown
from training.rehearsal.ownership import ELEMENT_BYTES, WEIGHT, Ownership, Slices
from training.rehearsal.parameters import chunk_layers, distinct
from training.rehearsal.plan import Plan
from training.rehearsal.planned_memory import described
from training.rehearsal.samples import SampledStep
from training.reporting.formatting import gibibytes

_MOST_NAMED = 4
"""Findings of one kind that are named one by one."""


def check_state(plan: Plan, ownership: Ownership, state: Mapping[str, Slices]) -> list[Finding]:
    """Return elements of weights or moments that nobody owns, several own, or that do not exist."""
    found: list[Finding] = []
    for kinds, slices in _distinct(state):
        found += _check_cover(plan, ownership, slices.owned(), f"{kinds} in memory")
        found += _check_copies(plan, ownership, slices, kinds)
        found += _check_same_holder(plan, ownership, state[WEIGHT], slices, kinds)
    expected = num_parameters(plan.config.model)
    counted = int(ownership.numels.sum())
    if counted != expected:
        message = f"the programs hold {counted:,} parameters, the model has {expected:,}"
        found.append(Finding(check="state", message=message))
    return found


def _distinct(tables: Mapping[str, Slices]) -> list[tuple[str, Slices]]:
    """Return tables by their kinds; those of weights and moments are one unless something is wrong."""
    kinds: dict[int, list[str]] = {}
    for kind, slices in tables.items():
        kinds.setdefault(id(slices), []).append(kind)
    return [(" and ".join(of_table), tables[of_table[0]]) for of_table in kinds.values()]


def _check_cover(plan: Plan, ownership: Ownership, slices: Slices, what: str) -> list[Finding]:
    """Return what is not covered exactly once, parameter by parameter."""
    rows = slices.in_order()
    wholes = ownership.numels
    starts, ends = rows.start, rows.start + rows.numel
    begins = np.append(True, rows.parameter[1:] != rows.parameter[:-1])
    before = np.where(begins, 0, np.append(0, ends[:-1]))
    found: list[Finding] = []

    def tell(parameter: int, low: int, high: int, verb: str, ranks: Sequence[int]) -> None:
        name = ownership.names[parameter]
        who = " and ".join(plan.grid.name(rank) for rank in dict.fromkeys(ranks))
        message = f"{name}: elements {low:,} to {high - 1:,} {verb} {who}".rstrip()
        found.append(Finding(check=what, message=message, ranks=tuple(dict.fromkeys(ranks)), parameter=name))

    for row in np.flatnonzero(starts != before)[:_MOST_NAMED]:
        number, low, high = int(rows.parameter[row]), int(before[row]), int(starts[row])
        mine = int(rows.rank[row])
        if low < high:
            neighbours = [mine] if begins[row] else [int(rows.rank[row - 1]), mine]
            tell(number, low, high, "are owned by nobody; their neighbours by", neighbours)
        else:
            tell(number, high, min(low, int(ends[row])), "are owned by both", [int(rows.rank[row - 1]), mine])
    lasts = np.flatnonzero(np.append(begins[1:], True))
    for row in lasts[ends[lasts] != wholes[rows.parameter[lasts]]][:_MOST_NAMED]:
        number, end = int(rows.parameter[row]), int(ends[row])
        whole, mine = int(wholes[number]), [int(rows.rank[row])]
        if end < whole:
            tell(number, end, whole, "are owned by nobody; those before them by", mine)
        else:
            tell(number, whole, end, "do not exist, they are padding, but are owned by", mine)
    for number in np.setdiff1d(np.arange(len(wholes)), rows.parameter)[:_MOST_NAMED]:
        before_it = rows.rank[rows.parameter == number - 1][:1].tolist()
        tell(int(number), 0, int(wholes[number]), "are owned by nobody; the parameter before it by", before_it)
    return found


def _check_same_holder(
    plan: Plan, ownership: Ownership, weights: Slices, moments: Slices, kind: str
) -> Iterator[Finding]:
    """Yield moments that another rank holds than the weights they update."""
    if weights is moments:
        return
    one, other = weights.in_order(), moments.in_order()
    if len(one) != len(other):
        return  # what is missing or too much is found as such
    for row in np.flatnonzero((one.rank != other.rank) & (one.parameter == other.parameter))[:_MOST_NAMED]:
        name, holder = ownership.names[other.parameter[row]], int(other.rank[row])
        message = (
            f"{name}: {kind} from element {other.start[row]:,} on is held by {plan.grid.name(holder)}, the weights by "
            f"{plan.grid.name(int(one.rank[row]))}"
        )
        yield Finding(check=f"{kind} in memory", message=message, ranks=(holder,), parameter=name)


def _check_copies(plan: Plan, ownership: Ownership, slices: Slices, kind: str) -> list[Finding]:
    """Return where the copy of a tied weight is not cut as its owner's: their gradients are added range by range."""
    copies = slices.rows(~slices.is_owner).in_order()
    if not len(copies):
        return []
    numbers = np.unique(copies.parameter)
    owned = slices.rows(slices.is_owner & np.isin(slices.parameter, numbers)).in_order()
    first_of = {int(row[1]): int(row[0]) for row in plan.grid.groups(GroupKind.tied)}
    found = []
    by_range = {
        (int(p), int(s), int(n)): int(r)
        for p, r, s, n in zip(owned.parameter, owned.rank, owned.start, owned.numel, strict=True)
    }
    for parameter, rank, start, numel in zip(
        copies.parameter.tolist(), copies.rank.tolist(), copies.start.tolist(), copies.numel.tolist(), strict=True
    ):
        owner = by_range.get((parameter, start, numel))
        if owner != first_of.get(rank):
            name = ownership.names[parameter]
            whose = "nobody" if owner is None else plan.grid.name(owner)
            message = (
                f"{name}: the copy's elements {start:,} to {start + numel - 1:,} are held by {plan.grid.name(rank)}, "
                f"the owner's by {whose}, which is not the first rank of the same pipeline"
            )
            found.append(Finding(check=f"{kind} of a tied weight", message=message, ranks=(rank,), parameter=name))
    return found[:_MOST_NAMED]


def check_samples(plan: Plan, steps: Sequence[SampledStep]) -> list[Finding]:
    """Return samples that a step does not read, or reads twice, and ranks of one pipeline that read different ones."""
    found: list[Finding] = []
    for number, step in enumerate(steps):
        first = number * plan.global_batch
        found += _check_once(plan, step, first)
        found += _check_alike(plan, step)
    return found


def _check_once(plan: Plan, step: SampledStep, first: int) -> Iterator[Finding]:
    """Yield what the first pipeline stage does not read exactly once; the others are compared with it."""
    read = step.samples[0]
    counts = np.bincount(np.clip(read.ravel() - first, -1, plan.global_batch) + 1, minlength=plan.global_batch + 2)
    problems = (
        ("is read by nobody", np.flatnonzero(counts[1:-1] == 0) + first),
        ("is read more than once", np.flatnonzero(counts[1:-1] > 1) + first),
        (
            f"does not belong to it (samples {first:,} to {first + plan.global_batch - 1:,} do)",
            np.unique(read[(read < first) | (read >= first + plan.global_batch)]),
        ),
    )
    for problem, samples in problems:
        if len(samples):
            readers = np.unique(np.nonzero(np.isin(read, samples))[0])
            ranks = [_rank(plan, 0, int(replica)) for replica in readers[:_MOST_NAMED]]
            by = " by " + " and ".join(plan.grid.name(rank) for rank in ranks) if ranks else ""
            more = f" and {len(samples) - 1:,} more" if len(samples) > 1 else ""
            message = f"{step.name}: sample {samples[0]:,}{more} {problem}{by}"
            yield Finding(check="samples", message=message, ranks=tuple(ranks))


def _check_alike(plan: Plan, step: SampledStep) -> Iterator[Finding]:
    differs = (step.samples != step.samples[:1]).any(axis=(2, 3))
    for stage, replica in np.argwhere(differs)[:_MOST_NAMED].tolist():
        rank = _rank(plan, stage, replica)
        message = (
            f"{step.name}: {plan.grid.name(rank)} reads other samples than the first pipeline stage of its pipeline"
        )
        yield Finding(check="samples", message=message, ranks=(rank,))


def _rank(plan: Plan, pipeline_stage: int, replica: int) -> int:
    grid = plan.grid
    return (pipeline_stage * grid.data + replica) * grid.sequence * grid.tensor


def check_checkpoint(
    plan: Plan,
    ownership: Ownership,
    files: Mapping[str, Slices],
    biases: Ownership,
    file_bytes: NDArray[np.int64],
) -> list[Finding]:
    """Return what a checkpoint's files do not hold exactly once, and files of another size than their contents'."""
    found: list[Finding] = []
    contents = np.zeros(plan.grid.world_size, np.int64)
    for kinds, slices in _distinct(files):
        found += _check_cover(plan, ownership, slices, f"{kinds} in the checkpoint")
    if biases.names:
        found += _check_cover(plan, biases, biases.state, "balancing biases in the checkpoint")
    for slices in (*files.values(), biases.state):
        contents += ELEMENT_BYTES * slices.numel_of_ranks(plan.grid.world_size)
    for rank in np.flatnonzero(contents != file_bytes)[:_MOST_NAMED].tolist():
        message = (
            f"rank-{rank:05d}.safetensors has {file_bytes[rank]:,} bytes of tensors, its slices take {contents[rank]:,}"
        )
        found.append(Finding(check="checkpoint files", message=message, ranks=(rank,)))
    return found


def check_memory(
    plan: Plan,
    state: Mapping[str, Slices],
    memory: Sequence[RankMemory | StageMemory],
    device_bytes: NDArray[np.float64],
) -> list[Finding]:
    """Return ranks whose plan exceeds the device, or which hold more or less state than an even share."""
    found: list[Finding] = []
    for stage, part in enumerate(memory):
        ranks = plan.pipeline_stage_ranks(stage)
        over = np.flatnonzero(device_bytes[ranks] < part.total_bytes).astype(np.int32) + np.int32(ranks.start)
        if len(over):
            message = (
                f"{shown(over)} of pipeline stage {stage}: {described(part)} are planned, the device has "
                f"{gibibytes(float(device_bytes[over[0]]))}"
            )
            found.append(Finding(check="memory", message=message, ranks=tuple(over[:16].tolist())))
    if plan.layout.zero_stage > 0:  # else all replicas hold everything; the table has the first alone
        found += _check_shares(plan, state)
    return found


def _check_shares(plan: Plan, state: Mapping[str, Slices]) -> Iterator[Finding]:
    """Yield ranks with more state than a share of their pipeline stage, rounded up as ZeRO rounds it."""
    world_size, tensor = plan.grid.world_size, plan.grid.tensor
    held = np.zeros(world_size, np.int64)
    for slices in state.values():
        held += ELEMENT_BYTES * slices.numel_of_ranks(world_size)
    for stage in range(plan.grid.pipeline):
        parts = [plan.parts[chunk] for chunk in plan.chunks_of(stage)]
        whole = [p for part in parts for p in distinct(chunk_layers(plan.layers, part))]
        # A parameter's part is rounded up under ZeRO-3, a flat group's (there are four) below; one that tensor
        # parallelism does not cut is the first tensor rank's alone.
        shared = sum(p.numel for p in whole) / (plan.grid.num_shards * tensor)
        uncut = sum(p.numel for p in whole if p.tensor_part(tensor).cut_dim is None) / plan.grid.num_shards
        most = len(state) * ELEMENT_BYTES * (shared + (uncut if tensor > 1 else 0) + len(whole) + 8 * len(parts))
        ranks = plan.pipeline_stage_ranks(stage)
        for place in np.flatnonzero(held[ranks] > most)[:_MOST_NAMED].tolist():
            rank = ranks[place]
            message = f"{plan.grid.name(rank)} holds {held[rank]:,} bytes of state, its share is {most:,.0f} at most"
            yield Finding(check="memory", message=message, ranks=(rank,))
